"""Numbers of an example as a condition."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.specs import Spec
from jldm.models.conditioners.conditioner import Conditioner, Encode, Inputs, check_fields

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vector(Conditioner):
  """The float feature `field` [B] or [B, D] of the data, times `scale`, and a 1 if it is known.

  An example with a value that is not finite is unknown.  The null is zeros.
  """

  field: str = "vector"
  name: str = "vector"
  scale: float = 1.0

  @property
  def fields(self) -> tuple[str, ...]:
    return (self.field,)

  def draw_inputs(self, batch: dict, keys: Array) -> Inputs:
    check_fields(self, batch)
    values = batch[self.field]
    return {"values": values.reshape(len(values), -1).astype(jnp.float32)}  # [B, D]

  def read_request(self, given: Any, data: Spec) -> Inputs:
    """Numbers [D] for all samples, or [n, D]; UserError for others."""
    width = int(np.prod(dict(data)[self.field].shape))
    try:
      values = np.asarray(given, np.float32)
    except (TypeError, ValueError) as error:
      raise UserError(f"{self.name}={given!r}; expected {width} numbers, or [n, {width}]") from error
    values = values.reshape(-1, width) if values.ndim < 2 and values.size == width else values
    if values.ndim != 2 or values.shape[1] != width:
      raise UserError(
        f"{self.name} of shape {list(np.shape(given))}; expected {width} numbers, or [n, {width}]"
      )
    return {"values": values}

  def embed(self, params: Any, inputs: Inputs, encode: Encode) -> dict[str, Array]:
    values = self.scale * inputs["values"]
    known = jnp.isfinite(values).all(-1, keepdims=True)
    return {"vector": jnp.concatenate([jnp.where(known, values, 0), known.astype(jnp.float32)], -1)}
