"""Stage 1: images through a Gaussian bottleneck and back.

  (1)  loss = l1 |x - x'| + l2 (x - x')^2 + kl_weight KL(q(z | x) || N(0, I)) / D

a mean over the D values of an image; Rombach et al. 2022 (2112.10752), eq. 25 without the adversarial part.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jldm.core.keys import row_keys
from jldm.metrics.image import psnr
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.codec import pixels
from jldm.objectives.objective import Aux

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
  """Equation (1); a batch has `image` [B, H, W, C], uint8 or float in [-1, 1]."""

  network: KLAutoencoder
  l1: float = 1.0
  l2: float = 0.0
  kl_weight: float = 1e-6

  def init(self, key: Array, batch: dict) -> tuple[Any, Any]:
    key_params, key_rows = jax.random.split(key)
    images = pixels(batch["image"])
    return self.network.init(key_params, images, row_keys(key_rows, batch["row"]))["params"], {}

  def loss(self, params: Any, extra: Any, ema: Any, frozen: Any, batch: dict, key: Array) -> tuple[Array, Aux]:
    del ema, frozen
    x = pixels(batch["image"])
    back, posterior = self.network.apply({"params": params}, x, row_keys(key, batch["row"]))
    error = self.l1 * jnp.abs(x - back) + self.l2 * jnp.square(x - back)
    kl = posterior.kl() / x[0].size
    metrics = {"psnr": psnr(x, back).mean(), "kl": kl.mean()}
    return error.mean((1, 2, 3)) + self.kl_weight * kl, Aux(metrics, extra)
