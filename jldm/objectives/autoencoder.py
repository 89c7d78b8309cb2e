"""Stage 1: images through a bottleneck and back.

  (1)  loss = d(x, D(z)) + kl_weight KL(q(z | x) || N(0, I)) / D             of a KL autoencoder
  (2)  loss = d(x, D(z)) + commitment_weight |z - sg(quantised z)|^2 / d     of a VQ autoencoder
  (3)  d(a, b) = l1_weight |a - b| + l2_weight (a - b)^2

These are means over the D values of an image and the d values of its latents.  An LPIPS distance
(`metrics.perceptual`) is added to d(x, D(z)) unless perceptual_weight is 0.  (1) is eq. 25 of Rombach
et al. 2022 (2112.10752) without its adversarial part, (2) is eq. 3 of van den Oord et al. 2017
(1711.00937).  Two regularisers of the latents may be added:

  (4)  + equivariance_weight d(T x, D(T z))   T halves the sides and rotates by a random k 90 degrees
  (5)  d(x, D(z + s |n| std(z) eps))      in place of d(x, D(z)), with n and eps normal, s = latent_noise

(4) is EQ-VAE, Kouzelis et al. 2025 (2502.09509), eq. 6, as an additional term, with one scale so that
shapes are static.  (5) is the noise of RAE, Zheng et al. 2025 (2510.11690), for decoders of latents that
a model samples; std is per sample.
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
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.models.codecs.codec import pixels
from jldm.models.codecs.images import ImageCodec
from jldm.nn.resample import halve
from jldm.objectives.objective import Aux, Objective

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Objective):
  """Equations (1) to (5); a batch has `image` [B, H, W, C], uint8 or float in [-1, 1].

  `extra` holds the network's other collections: {"codebook": ...}, or nothing.  `frozen["lpips"]`
  holds the parameters of LPIPS, needed unless perceptual_weight is 0.  They come from the file
  `lpips`, which `jldm convert --kind lpips` makes.

  Raises:
    UserError: a weight below zero.
  """

  makes: ClassVar[str] = "codec"
  network: Any  # of models.autoencoders
  l1_weight: float = 1.0
  l2_weight: float = 0.0
  kl_weight: float = 1e-6
  commitment_weight: float = 0.25
  equivariance_weight: float = 0.0
  latent_noise: float = 0.0
  perceptual_weight: float = 0.0
  lpips: str = ""

  def __post_init__(self):
    for name in (
      "l1_weight",
      "l2_weight",
      "kl_weight",
      "commitment_weight",
      "equivariance_weight",
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
    reconstruction = apply(
      "decode", add_latent_noise(z, self.latent_noise, row_keys(key_noise, rows)) if self.latent_noise else z
    )
    loss = self.distance(x, reconstruction)
    if self.perceptual_weight:
      costs = costs | {"perceptual": perceptual_loss(frozen, x, reconstruction)}
    for name, cost in costs.items():
      loss = loss + getattr(self, f"{name}_weight") * cost
    if self.equivariance_weight:
      keys = row_keys(key_turn, rows)
      unequal = self.distance(
        rotate_at_random(halve_sides(x), keys), apply("decode", rotate_at_random(halve_sides(z), keys))
      )
      loss, costs = loss + self.equivariance_weight * unequal, costs | {"equivariance": unequal}
    metrics = (
      {"psnr": psnr(x, reconstruction).mean()} | {name: cost.mean() for name, cost in costs.items()} | metrics
    )
    return x, reconstruction, loss, Aux(metrics, extra)

  def distance(self, a: Array, b: Array) -> Array:
    """Equation (3), a mean over the values of data [B, ...] -> [B]."""
    each = self.l1_weight * jnp.abs(a - b) + self.l2_weight * jnp.square(a - b)
    return each.mean(tuple(range(1, each.ndim)))

  def result(self, params: Any, extra: Any, frozen: dict) -> Loaded:
    """The codec without the mean and std of its latents, which are measured after training."""
    del frozen
    return Loaded(ImageCodec(self.network), {"params": params, "extra": extra})

  def start(self, params: Any, extra: Any, codec: dict) -> tuple[Any, Any]:
    """The state of `init` with the parameters of a trained autoencoder; the inverse of `result`."""
    del params, extra
    return codec["params"], codec["extra"]

  @property
  def refresh_every_steps(self) -> int:
    """The interval at which `refresh` is to be called between steps; 0 is never."""
    return self.network.quantizer.restart_every_steps if isinstance(self.network, VQAutoencoder) else 0

  @property
  def weight_files(self) -> dict[str, str]:
    """{"lpips": file} if there is a perceptual loss."""
    return {"lpips": self.lpips} if self.perceptual_weight else {}

  def check_fields(self) -> None:
    if self.perceptual_weight and not self.lpips:
      raise UserError(
        f"perceptual_weight={self.perceptual_weight} without weights; set lpips to a file that "
        "jldm convert --kind lpips made"
      )

  def refresh(self, params: Any, extra: Any, batch: dict, key: Array) -> Any:
    """`extra` with dead codes of a codebook reset to latents of the batch; called outside the step."""
    if not extra:
      return extra
    return self.network.apply({"params": params} | extra, pixels(batch["image"]), key, method="refresh")


def perceptual_loss(frozen: dict, x: Array, reconstruction: Array) -> Array:
  """LPIPS [B]; UserError if its parameters are missing."""
  if "lpips" not in frozen:
    raise UserError(
      "perceptual_weight is not 0, but there are no LPIPS weights; "
      "give them as frozen['lpips'], or set it to 0"
    )
  return perceptual.lpips_distance(frozen["lpips"], x, reconstruction)


def add_latent_noise(z: Array, scale: float, keys: Array) -> Array:
  """z [B, ...] of equation (5), with noise of a random strength per sample, relative to its std; keys [B]."""
  key_strength, key_noise = split_each(keys)
  axes = tuple(range(1, z.ndim))
  spread = jax.lax.stop_gradient(z.std(axes, keepdims=True))
  first = z[(slice(None), *[slice(1)] * (z.ndim - 1))]  # [B, 1, ...]
  return z + scale * jnp.abs(normal_like(key_strength, first)) * spread * normal_like(key_noise, z)


def halve_sides(x: Array) -> Array:
  """Means of 2x2 places of [B, H, W, C]; UserError if a side is odd."""
  if x.shape[1] % 2 or x.shape[2] % 2:
    raise UserError(
      f"equivariance halves latents, and these are {x.shape[1]}x{x.shape[2]}; "
      "expected even sides, or set it to 0"
    )
  return halve(x)


def rotate_at_random(x: Array, keys: Array) -> Array:
  """Each of x [B, H, W, C] rotated by a random multiple of 90 degrees, or of 180 if not square; keys [B]."""
  turns = (0, 1, 2, 3) if x.shape[1] == x.shape[2] else (0, 2)
  choices = jnp.stack([jnp.rot90(x, turn, (1, 2)) for turn in turns], 1)  # [B, turns, H, W, C]
  pick = lambda key, rotated: rotated[jax.random.randint(key, (), 0, len(turns))]
  return jax.vmap(pick)(keys, choices)
