"""Stage 1: images through a bottleneck and back.

  (1)  loss = d(x, D(z)) + kl_weight KL(q(z | x) || N(0, I)) / D             of a KL autoencoder
  (2)  loss = d(x, D(z)) + commitment_weight |z - sg(quantised z)|^2 / d     of a VQ autoencoder
  (3)  d(a, b) = l1 |a - b| + l2 (a - b)^2

with an LPIPS distance (`metrics.perceptual`) added to d(x, D(z)) where perceptual_weight is not 0;
means over the D values of an image and the d of its latents; Rombach et al. 2022 (2112.10752), eq.
25 without the adversarial part, and van den Oord et al. 2017 (1711.00937), eq. 3.  Two regularisers
of the latents may be added:

  (4)  + equivariance d(T x, D(T z))      T halves the sides and turns by a random multiple of 90 degrees
  (5)  d(x, D(z + s |n| std(z) eps))      in place of d(x, D(z)); n, eps normal, s = latent_noise, std of an example

(4) is EQ-VAE, Kouzelis et al. 2025 (2502.09509), eq. 6, with one scale, so that shapes are static,
and as a term beside the plain one; (5) is the noise of RAE, Zheng et al. 2025 (2510.11690), for
decoders whose latents are drawn by a model.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.keys import normal_like, row_keys, split_each
from jldm.core.specs import Loaded
from jldm.metrics import perceptual
from jldm.metrics.image import psnr
from jldm.models.codecs.codec import pixels
from jldm.models.codecs.images import ImageCodec
from jldm.nn.resample import halve
from jldm.objectives.objective import Aux

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
  """Equations (1) to (5); a batch has `image` [B, H, W, C], uint8 or float in [-1, 1].

  `extra` is the network's collections besides its parameters: {"codebook": ...}, or nothing.
  `frozen["lpips"]` is the parameters of LPIPS, needed where perceptual_weight is not 0: of the file
  `lpips`, which `jldm convert --kind lpips` made.

  Raises:
    UserError: a weight below zero.
  """

  makes: ClassVar[str] = "codec"
  network: Any  # of models.autoencoders
  l1: float = 1.0
  l2: float = 0.0
  kl_weight: float = 1e-6
  commitment_weight: float = 0.25
  equivariance: float = 0.0
  latent_noise: float = 0.0
  perceptual_weight: float = 0.0
  lpips: str = ""

  def __post_init__(self):
    for name in (
      "l1",
      "l2",
      "kl_weight",
      "commitment_weight",
      "equivariance",
      "latent_noise",
      "perceptual_weight",
    ):
      if getattr(self, name) < 0:
        raise UserError(f"{name}={getattr(self, name)}; expected at least 0 (off)")

  def init(self, key: Array, batch: dict, frozen: dict) -> tuple[Any, Any]:
    del frozen
    key_params, key_rows, key_codes = jax.random.split(key, 3)
    images = pixels(batch["image"])
    extra = dict(self.network.init(key_params, images, row_keys(key_rows, batch["row"])))
    params = extra.pop("params")
    return params, self.refresh(params, extra, batch, key_codes)

  def loss(
    self, params: Any, extra: Any, ema: Any, frozen: dict, batch: dict, key: Array
  ) -> tuple[Array, Aux]:
    del ema
    return self.terms(params, extra, batch, key, frozen)[2:]

  def terms(
    self, params: Any, extra: Any, batch: dict, key: Array, frozen: dict
  ) -> tuple[Array, Array, Array, Aux]:
    """-> (images x and their reconstructions [B, H, W, C] in [-1, 1], loss [B], Aux)."""
    key_z, key_noise, key_turn = jax.random.split(key, 3)
    rows, variables = batch["row"], {"params": params} | extra
    apply = lambda method, *args: self.network.apply(variables, *args, method=method)
    x = pixels(batch["image"])
    posterior = apply("encode", x)
    z = posterior.sample(row_keys(key_z, rows))
    costs, metrics, extra = apply("bottleneck", posterior)
    back = apply("decode", noisy(z, self.latent_noise, row_keys(key_noise, rows)) if self.latent_noise else z)
    loss = self.distance(x, back)
    if self.perceptual_weight:
      costs = costs | {"perceptual": perceived(frozen, x, back)}
    for name, cost in costs.items():
      loss = loss + getattr(self, f"{name}_weight") * cost
    if self.equivariance:
      keys = row_keys(key_turn, rows)
      unequal = self.distance(turned(halved(x), keys), apply("decode", turned(halved(z), keys)))
      loss, costs = loss + self.equivariance * unequal, costs | {"equivariance": unequal}
    metrics = {"psnr": psnr(x, back).mean()} | {name: cost.mean() for name, cost in costs.items()} | metrics
    return x, back, loss, Aux(metrics, extra)

  def distance(self, a: Array, b: Array) -> Array:
    """Equation (3), a mean over the values of data [B, ...] -> [B]."""
    each = self.l1 * jnp.abs(a - b) + self.l2 * jnp.square(a - b)
    return each.mean(tuple(range(1, each.ndim)))

  def result(self, params: Any, extra: Any, frozen: dict) -> Loaded:
    """The codec without the mean and std of its latents, which are measured once it is trained."""
    del frozen
    return Loaded(ImageCodec(self.network), {"params": params, "extra": extra})

  def start(self, params: Any, extra: Any, codec: dict) -> tuple[Any, Any]:
    """What `init` gave with a trained autoencoder in its place; the inverse of `result`."""
    del params, extra
    return codec["params"], codec["extra"]

  @property
  def refresh_every_steps(self) -> int:
    """How often `refresh` wants to be called between steps; 0 is never."""
    return getattr(getattr(self.network, "quantizer", None), "restart_every_steps", 0)

  def refresh(self, params: Any, extra: Any, batch: dict, key: Array) -> Any:
    """`extra` with the dead codes of a codebook started anew from latents of the batch, outside the step."""
    if not extra:
      return extra
    return self.network.apply({"params": params} | extra, pixels(batch["image"]), key, method="refresh")


def perceived(frozen: dict, x: Array, back: Array) -> Array:
  """LPIPS [B]; UserError where its parameters did not come."""
  if "lpips" not in frozen:
    raise UserError(
      "perceptual_weight is not 0, but there are no LPIPS weights; give them as frozen['lpips'], or set it to 0"
    )
  return perceptual.lpips_distance(frozen["lpips"], x, back)


def noisy(z: Array, scale: float, keys: Array) -> Array:
  """Equation (5): z [B, ...] with noise of a random strength an example, relative to its own spread; keys [B]."""
  key_strength, key_noise = split_each(keys)
  axes = tuple(range(1, z.ndim))
  spread = jax.lax.stop_gradient(z.std(axes, keepdims=True))
  first = z[(slice(None), *[slice(1)] * (z.ndim - 1))]  # [B, 1, ...]
  return z + scale * jnp.abs(normal_like(key_strength, first)) * spread * normal_like(key_noise, z)


def halved(x: Array) -> Array:
  """Means of 2x2 places of [B, H, W, C]; UserError where a side is odd."""
  if x.shape[1] % 2 or x.shape[2] % 2:
    raise UserError(
      f"equivariance halves latents, and these are {x.shape[1]}x{x.shape[2]}; expected even sides, or set it to 0"
    )
  return halve(x)


def turned(x: Array, keys: Array) -> Array:
  """Each of x [B, H, W, C] by a random multiple of 90 degrees, of 180 where it is not square; keys [B]."""
  turns = (0, 1, 2, 3) if x.shape[1] == x.shape[2] else (0, 2)
  choices = jnp.stack([jnp.rot90(x, turn, (1, 2)) for turn in turns], 1)  # [B, turns, H, W, C]
  pick = lambda key, some: some[jax.random.randint(key, (), 0, len(turns))]
  return jax.vmap(pick)(keys, choices)
