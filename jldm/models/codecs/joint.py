"""Several codecs as one: latents that are a dict of parts."""

import dataclasses
from typing import Any

import jax

from jldm.core.errors import UserError
from jldm.core.specs import Spec
from jldm.models.codecs.codec import Array, Batch, Codec


@dataclasses.dataclass(frozen=True)
class Joint:
  """Joint((("image", a), ("text", b))): each codec reads its own fields of a batch; latents are
  {"image": …, "text": …}.

  Raises:
    UserError: fewer than two parts, or a name twice, or no identifier.
  """

  parts: tuple[tuple[str, Codec], ...]

  def __post_init__(self):
    names = [name for name, _ in self.parts]
    if (
      len(set(names)) != len(names)
      or len(names) < 2
      or not all(name.isidentifier() and "__" not in name for name in names)
    ):
      raise UserError(
        f"Joint has parts {names}; expected at least two, with different identifiers without __"
      )

  @property
  def trained(self) -> bool:
    return any(codec.trained for _, codec in self.parts)

  @property
  def fields(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(field for _, codec in self.parts for field in codec.fields))

  def init(self, key: Array) -> dict:
    keys = jax.random.split(key, len(self.parts))
    return joined({name: codec.init(each) for (name, codec), each in zip(self.parts, keys)})

  def latent_spec(self, data: Spec) -> dict:
    return {name: codec.latent_spec(data) for name, codec in self.parts}

  def latent_mask(self, known: Any) -> dict:
    """known: a mask by part."""
    return {name: codec.latent_mask(known[name]) for name, codec in self.parts}

  def encode(self, params: dict, batch: Batch) -> dict:
    """Of the parts whose fields the batch has."""
    encoded = [(name, codec) for name, codec in self.parts if batch.keys() >= set(codec.fields)]
    return {name: codec.encode(part_of(params, name), batch) for name, codec in encoded}

  def decode(self, params: dict, z: dict) -> dict:
    """The parts that z has."""
    return {name: codec.decode(part_of(params, name), z[name]) for name, codec in self.parts if name in z}

  def finish(self, decoded: dict) -> dict:
    return {name: codec.finish(decoded[name]) for name, codec in self.parts if name in decoded}


def joined(each: dict[str, dict]) -> dict:
  """The parameters of a Joint from those of its parts' codecs."""
  return {
    key: {name: params[key] for name, params in each.items()} for key in ("params", "extra", "mean", "std")
  }


def part_of(params: dict, name: str) -> dict:
  """The parameters of one part's codec."""
  return {key: value[name] for key, value in params.items()}
