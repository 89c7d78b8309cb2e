"""Known ways in which a picture is spoilt: what a restoration starts from, or what a picture is made of.

Each is a pure function, degrade(images [B, H, W, C] in [-1, 1], keys [B]) -> the same shape and
range, a picture that the same autoencoder can read.  Row b depends on images[b] and keys[b] alone;
those that draw nothing need no keys. All but `Edges` and the clipped `Noisy` are linear in the
images.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.keys import normal_like, split_each

Array = jax.Array

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def check(degradation: Any, field: str, legal: bool, expected: str) -> None:
  if not legal:
    raise UserError(
      f"{field}={getattr(degradation, field)} of {type(degradation).__name__}; expected {expected}"
    )


@dataclasses.dataclass(frozen=True)
class Grey:
  """Its luminance in every channel."""

  def __call__(self, images: Array, keys: Array | None = None) -> Array:
    return jnp.broadcast_to(luminance(images), images.shape)


@dataclasses.dataclass(frozen=True)
class Edges:
  """Dark lines on white: black where the luminance, smoothed by `sigma` pixels, rises by 1 / strength
  a pixel or more.
  """

  sigma: float = 0.7
  strength: float = 3.0

  def __post_init__(self):
    check(self, "strength", self.strength > 0, "a number above 0")
    check(self, "sigma", self.sigma > 0, "a number above 0, in pixels")

  def __call__(self, images: Array, keys: Array | None = None) -> Array:
    rises = jnp.gradient(luminance(images), axis=(1, 2))  # before the blur: exactly 0 in a flat picture
    slope = jnp.hypot(*(blurred(rise, self.sigma) for rise in rises))
    return jnp.broadcast_to(1 - 2 * jnp.minimum(self.strength * slope, 1), images.shape)


@dataclasses.dataclass(frozen=True)
class Noisy:
  """Gaussian noise of standard deviation `std` added, and clipped, as a file would hold it."""

  std: float = 0.5

  def __post_init__(self):
    check(self, "std", self.std >= 0, "a number from 0, where pictures span 2")

  def __call__(self, images: Array, keys: Array) -> Array:
    return jnp.clip(images + self.std * normal_like(keys, images), -1, 1)


@dataclasses.dataclass(frozen=True)
class Blurred:
  """Convolved with a Gaussian of `sigma` pixels, whose weights are those of the pixels that there are."""

  sigma: float = 2.0

  def __post_init__(self):
    check(self, "sigma", self.sigma > 0, "a number above 0, in pixels")

  def __call__(self, images: Array, keys: Array | None = None) -> Array:
    return blurred(images, self.sigma)


@dataclasses.dataclass(frozen=True)
class Downsampled:
  """Means of blocks of `factor` x `factor` pixels, each shown as large as its block."""

  factor: int = 4

  def __post_init__(self):
    check(self, "factor", self.factor >= 1, "a whole number from 1")

  def __call__(self, images: Array, keys: Array | None = None) -> Array:
    """Raises: UserError for sides that the factor does not divide."""
    b, h, w, c = images.shape
    if h % self.factor or w % self.factor:
      raise UserError(f"pictures of {h}x{w}; expected sides divisible by {self}.factor")
    blocks = images.reshape(b, h // self.factor, self.factor, w // self.factor, self.factor, c)
    return jnp.broadcast_to(blocks.mean((2, 4), keepdims=True), blocks.shape).reshape(images.shape)


@dataclasses.dataclass(frozen=True)
class Missing:
  """A `share` of the pixels, drawn one by one, lost: 0, the middle grey, in every channel."""

  share: float = 0.5

  def __post_init__(self):
    check(self, "share", 0 <= self.share <= 1, "a share from 0 to 1")

  def __call__(self, images: Array, keys: Array) -> Array:
    return images * self.known(images, keys)

  def known(self, images: Array, keys: Array) -> Array:
    """1 where a pixel is kept, 0 where it is lost: [B, H, W, 1]."""
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (*images.shape[1:3], 1)))(keys)
    return (drawn >= self.share).astype(images.dtype)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """One of several `degradations` for each picture, drawn by its key."""

  degradations: tuple[Any, ...] = (Noisy(), Blurred(), Downsampled(), Missing())

  def __post_init__(self):
    check(self, "degradations", len(self.degradations) > 0, "at least one")

  def __call__(self, images: Array, keys: Array) -> Array:
    key_choice, key_inner = split_each(keys)
    each = jnp.stack([degrade(images, key_inner) for degrade in self.degradations])
    choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(each)))(key_choice)
    return each[choice, jnp.arange(len(images))]


def luminance(images: Array) -> Array:
  """[B, H, W, C] -> [B, H, W, 1], C 1 or 3."""
  return (
    images @ jnp.asarray(LUMINANCE, images.dtype)[:, None]
    if images.shape[-1] == 3
    else images.mean(-1, keepdims=True)
  )


def blurred(images: Array, sigma: float) -> Array:
  down, across = (jnp.asarray(gaussian(size, sigma), images.dtype) for size in images.shape[1:3])
  return jnp.einsum("yh,bhwc,xw->byxc", down, images, across, precision="highest")


def gaussian(size: int, sigma: float) -> np.ndarray:
  """Weights of each pixel of a side for each place along it: [size, size], rows sum to one."""
  places = np.arange(size)
  weights = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
  return weights / weights.sum(1, keepdims=True)
