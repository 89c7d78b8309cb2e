"""A codec of images that works in tiles, for less memory."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.specs import Spec
from jldm.models.codecs.codec import Array, Batch, pixels
from jldm.models.codecs.images import ImageCodec, variables
from jldm.models.codecs.tiling import Blended, Exact


@dataclasses.dataclass(frozen=True)
class Tiled:
  """An ImageCodec that decodes by Exact(...) tiles, or encodes and decodes by Blended(...) ones; its
  parameters stay.

  Raises:
    UserError: another codec.
  """

  codec: ImageCodec
  tiles: Exact | Blended
  trained: ClassVar[bool] = True

  def __post_init__(self):
    if not isinstance(self.codec, ImageCodec):
      raise UserError(f"tiles of {type(self.codec).__name__}, which has no autoencoder; leave the tiles out")

  @property
  def fields(self) -> tuple[str, ...]:
    return self.codec.fields

  @property
  def factor(self) -> int:
    return self.codec.factor

  def init(self, key: Array) -> dict:
    return self.codec.init(key)

  def latent_spec(self, data: Spec) -> jax.ShapeDtypeStruct:
    return self.codec.latent_spec(data)

  def latent_mask(self, known: Array) -> Array:
    return self.codec.latent_mask(known)

  def encode(self, params: dict, batch: Batch) -> Any:
    if isinstance(self.tiles, Exact):
      return self.codec.encode(params, batch)
    return self.tiles.encode(self.codec.network, variables(params), pixels(batch[self.codec.field]))

  def decode(self, params: dict, z: Array) -> Array:
    network = self.codec.network.clone(dtype="float32")
    return jnp.clip(self.tiles.decode(network, variables(params), z), -1, 1)

  def finish(self, decoded: Array) -> Array:
    return self.codec.finish(decoded)
