"""Degradations of pictures, for restoration and for image-to-image conditions.

Each is a pure function, degrade(images [B, H, W, C] in [-1, 1], keys [B]) -> the same shape and range,
so the same autoencoder can encode the result.  Row b depends only on images[b] and keys[b].
Degradations without randomness need no keys.  All but `Edges` and the clipped `Noisy` are linear.
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


def check_field(degradation: Any, field: str, legal: bool, expected: str) -> None:
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
    check_field(self, "strength", self.strength > 0, "a number above 0")
    check_field(self, "sigma", self.sigma > 0, "a number above 0, in pixels")

  def __call__(self, images: Array, keys: Array | None = None) -> Array:
    rises = jnp.gradient(luminance(images), axis=(1, 2))  # before the blur: exactly 0 in a flat picture
    slope = jnp.hypot(*(blurred(rise, self.sigma) for rise in rises))
    return jnp.broadcast_to(1 - 2 * jnp.minimum(self.strength * slope, 1), images.shape)


@dataclasses.dataclass(frozen=True)
class Noisy:
  """Gaussian noise of standard deviation `std` added, then clipped to [-1, 1]."""

  std: float = 0.5

  def __post_init__(self):
    check_field(self, "std", self.std >= 0, "a number from 0, where pictures span 2")

  def __call__(self, images: Array, keys: Array) -> Array:
    return jnp.clip(images + self.std * normal_like(keys, images), -1, 1)


@dataclasses.dataclass(frozen=True)
class Blurred:
  """A Gaussian blur of `sigma` pixels, with weights normalised at the borders."""

  sigma: float = 2.0

  def __post_init__(self):
    check_field(self, "sigma", self.sigma > 0, "a number above 0, in pixels")

  def __call__(self, images: Array, keys: Array | None = None) -> Array:
    return blurred(images, self.sigma)


@dataclasses.dataclass(frozen=True)
class Downsampled:
  """Means of blocks of `factor` x `factor` pixels, at the size of the images."""

  factor: int = 4

  def __post_init__(self):
    check_field(self, "factor", self.factor >= 1, "a whole number from 1")

  def __call__(self, images: Array, keys: Array | None = None) -> Array:
    """Raises: UserError for sides that the factor does not divide."""
    b, h, w, c = images.shape
    if h % self.factor or w % self.factor:
      raise UserError(f"pictures of {h}x{w}; expected sides divisible by {self}.factor")
    blocks = images.reshape(b, h // self.factor, self.factor, w // self.factor, self.factor, c)
    means = blocks.mean((2, 4), keepdims=True)  # [B, h, 1, w, 1, C]
    return jnp.broadcast_to(means, blocks.shape).reshape(images.shape)  # [B, H, W, C]


@dataclasses.dataclass(frozen=True)
class Missing:
  """A random `share` of the pixels set to 0, the middle grey, in every channel."""

  share: float = 0.5

  def __post_init__(self):
    check_field(self, "share", 0 <= self.share <= 1, "a share from 0 to 1")

  def __call__(self, images: Array, keys: Array) -> Array:
    return images * self.known(images, keys)

  def known(self, images: Array, keys: Array) -> Array:
    """1 where a pixel is kept, 0 where it is lost: [B, H, W, 1]."""
    drawn = jax.vmap(lambda key: jax.random.uniform(key, (*images.shape[1:3], 1), jnp.float32))(keys)
    return (drawn >= self.share).astype(images.dtype)


@dataclasses.dataclass(frozen=True)
class Mixture:
  """One of several `degradations` for each picture, drawn by its key."""

  degradations: tuple[Any, ...] = (Noisy(), Blurred(), Downsampled(), Missing())

  def __post_init__(self):
    check_field(self, "degradations", len(self.degradations) > 0, "at least one")

  def __call__(self, images: Array, keys: Array) -> Array:
    key_choice, key_inner = split_each(keys)
    each = jnp.stack([degrade(images, key_inner) for degrade in self.degradations])
    choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(each)))(key_choice)
    return each[choice, jnp.arange(len(images))]


def luminance(images: Array) -> Array:
  """[B, H, W, C] -> [B, H, W, 1], C 1 or 3."""
  if images.shape[-1] == 3:
    return images @ jnp.asarray(LUMINANCE, images.dtype)[:, None]
  return images.mean(-1, keepdims=True)


def blurred(images: Array, sigma: float) -> Array:
  down, across = (jnp.asarray(gaussian(size, sigma), images.dtype) for size in images.shape[1:3])
  return jnp.einsum("yh,bhwc,xw->byxc", down, images, across, precision="highest")


def gaussian(size: int, sigma: float) -> np.ndarray:
  """Weights of each pixel of a side for each place along it: [size, size], rows sum to one."""
  places = np.arange(size)
  weights = np.exp(-0.5 * ((places[:, None] - places) / sigma) ** 2)
  return weights / weights.sum(1, keepdims=True)
