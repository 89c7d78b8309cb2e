"""Images: through an autoencoder, or as they are."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.specs import Spec
from jldm.models.autoencoders.posterior import Gaussian, Point
from jldm.models.codecs.codec import Array, Batch, pixels, to_bytes
from jldm.models.conditioners import masks


@dataclasses.dataclass(frozen=True)
class ImageCodec:
  """The images [B, H, W, C] of a field, uint8 or float in [-1, 1], through an autoencoder.

  network: a linen Module with `factor`, `channels`, `latent_channels`, `encode` and `decode`.
  """

  network: Any
  field: str = "image"
  trained: ClassVar[bool] = True

  @property
  def fields(self) -> tuple[str, ...]:
    return (self.field,)

  @property
  def factor(self) -> int:
    """How many pixels of a side become one place of the latents."""
    return self.network.factor

  def init(self, key: Array) -> dict:
    key_params, key_row = jax.random.split(key)
    image = jnp.zeros((1, self.factor, self.factor, self.network.channels), jnp.float32)
    extra = dict(self.network.init(key_params, image, key_row[None]))
    vector = jnp.zeros(self.network.latent_channels, jnp.float32)
    return {"params": extra.pop("params"), "extra": extra, "mean": vector, "std": vector + 1}

  def latent_spec(self, data: Spec) -> jax.ShapeDtypeStruct:
    """float32 [h, w, c].

    Raises:
      UserError: other channels, or sides that the network cannot divide.
    """
    height, width, channels = image_shape(data, self.field)
    if channels != self.network.channels:
      raise UserError(
        f"data has {channels} channels and the autoencoder {self.network.channels}; make them equal"
      )
    if min(height, width) < 1 or height % self.factor or width % self.factor:
      raise UserError(
        f"size {height}x{width}; expected sides divisible by the autoencoder's factor {self.factor}"
      )
    shape = (height // self.factor, width // self.factor, self.network.latent_channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32)

  def latent_mask(self, known: Array) -> Array:
    """known [B, H, W, 1] -> [B, h, w, 1]: the places of which every pixel is known."""
    return masks.coarsen(known, self.factor)

  def encode(self, params: dict, batch: Batch) -> Gaussian:
    """The posterior over [B, h, w, c]."""
    return self.network.apply(variables(params), pixels(batch[self.field]), method="encode")

  def decode(self, params: dict, z: Array) -> Array:
    """z [B, h, w, c] -> images [B, H, W, C] in [-1, 1], in float32 whatever the dtype of training."""
    network = self.network.clone(dtype="float32")
    return jnp.clip(network.apply(variables(params), z, method="decode"), -1, 1)

  def finish(self, decoded: Array) -> Array:
    return to_bytes(decoded)


@dataclasses.dataclass(frozen=True)
class Identity:
  """Uses the images [B, H, W, C] of a field as latents: diffusion of pixels.

  mean, std: of pixels in [-1, 1], by which they are standardised; one number, or one per channel.

  Raises:
    UserError: a std that is not positive.
  """

  mean: float | tuple[float, ...] = 0.0
  std: float | tuple[float, ...] = 1.0
  field: str = "image"
  trained: ClassVar[bool] = False
  factor: ClassVar[int] = 1

  def __post_init__(self):
    if not np.all(np.asarray(self.std) > 0):
      raise UserError(f"Identity(std={self.std}); expected numbers above 0")

  @property
  def fields(self) -> tuple[str, ...]:
    return (self.field,)

  def init(self, key: Array) -> dict:
    """Nothing is learned: the mean and the std, [] or [C]."""
    del key
    statistics = {"mean": jnp.asarray(self.mean, jnp.float32), "std": jnp.asarray(self.std, jnp.float32)}
    return {"params": {}, "extra": {}} | statistics

  def latent_spec(self, data: Spec) -> jax.ShapeDtypeStruct:
    """float32 [H, W, C].

    Raises:
      UserError: a mean or a std of other channels.
    """
    height, width, channels = image_shape(data, self.field)
    for name, value in (("mean", self.mean), ("std", self.std)):
      if np.size(value) not in (1, channels):
        raise UserError(
          f"Identity({name}={value}) and data of {channels} channels; expected one number, or one per channel"
        )
    if min(height, width) < 1:
      raise UserError(f"size {height}x{width}; expected sides of at least 1")
    return jax.ShapeDtypeStruct((height, width, channels), jnp.float32)

  def latent_mask(self, known: Array) -> Array:
    return known

  def encode(self, params: dict, batch: Batch) -> Point:
    return Point(pixels(batch[self.field]))

  def decode(self, params: dict, z: Array) -> Array:
    """z [B, H, W, C] clipped to [-1, 1]."""
    return jnp.clip(z.astype(jnp.float32), -1, 1)

  def finish(self, decoded: Array) -> Array:
    return to_bytes(decoded)


def image_shape(data: Spec, field: str) -> tuple[int, int, int]:
  """(H, W, C) of a field of the data; UserError if there is none."""
  fields = dict(data)
  if field not in fields or len(fields[field].shape) != 3:
    listed = ", ".join(f"{name} {list(each.shape)}" for name, each in data)
    raise UserError(
      f"the codec reads images [H, W, C] from {field!r}, and the data has {listed}; expected {field!r}"
    )
  return fields[field].shape


def variables(params: dict) -> dict:
  """What the network is applied to; without "extra", the parameters alone, which is enough to encode."""
  return {"params": params["params"]} | params.get("extra", {})
