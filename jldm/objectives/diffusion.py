"""Stage 2: a denoiser of standardised latents.

  (1)  loss = |network(c_in z_t, c_noise(t), condition) - (p x0 + q eps)|^2 / D

a mean over the D values of a latent; DDPM (Ho et al. 2020, 2006.11239, eq. 14) for the row (p, q) of any target.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.keys import normal, row_keys
from jldm.diffusion.process import Process, rates
from jldm.diffusion.target import Predict, combine
from jldm.diffusion.times import Uniform
from jldm.models.autoencoders.posterior import Gaussian
from jldm.models.codec import Statistics, draw
from jldm.objectives.objective import Aux

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
  """Equation (1) on latents drawn from cached posteriors.

  A batch has the raw moments `mean` and `log_variance` [B, h, w, C] and `label` int [B]; `frozen` is their Statistics.
  A label is replaced by -1, the unknown class, with probability `label_dropout`, for classifier-free guidance.
  """

  network: nn.Module
  process: Process
  parametrization: Any = Predict("v")
  times: Any = Uniform()
  label_dropout: float = 0.1

  def init(self, key: Array, batch: dict) -> tuple[Any, Any]:
    z = jnp.zeros(batch["mean"].shape, jnp.float32)
    return self.network.init(key, z, jnp.zeros(len(z)), batch["label"])["params"], {}

  def loss(self, params: Any, extra: Any, ema: Any, frozen: Statistics, batch: dict, key: Array) -> tuple[Array, Aux]:
    del ema
    key_x0, key_t, key_eps, key_drop = jax.random.split(key, 4)
    x0 = draw(frozen, Gaussian(batch["mean"], batch["log_variance"]), row_keys(key_x0, batch["row"]))
    eps = normal(row_keys(key_eps, batch["row"]), x0)
    t = self.times(key_t, batch["stratum"])
    dropped = jax.vmap(jax.random.uniform)(row_keys(key_drop, batch["row"])) < self.label_dropout
    labels = jnp.where(dropped, -1, batch["label"])
    r, p = rates(self.process, t, x0), self.parametrization
    z = r.alpha * x0 + r.sigma * eps
    output = self.network.apply({"params": params}, p.c_in(r) * z, p.c_noise(self.process, t), labels)
    loss = jnp.square(output - combine(p.row(r), x0, eps)).mean(tuple(range(1, x0.ndim)))
    return loss, Aux({}, extra)
