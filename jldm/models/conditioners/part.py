"""A part of joint latents that is given while others are drawn.

The denoiser was trained with a separate time for each part.  So a part that is given keeps its place,
at time 0, and a part that is not known is noise at time 1: Bao et al. 2023 (2303.06555), section 3.2.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.specs import Spec
from jldm.models.conditioners.conditioner import HELD, Conditioner, Encode, Inputs

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part(Conditioner):
  """The part `name`, made of `fields` of the data; it is not used in training."""

  fields: tuple[str, ...]
  dropout: float = 1.0

  def draw_inputs(self, batch: dict, keys: Array) -> Inputs:
    return {field: batch[field] for field in self.fields}

  def read_request(self, given: Any, data: Spec) -> Inputs:
    """The array of the only field, or a dict by field, as in the data: one for all samples, or [n, ...]."""
    each = given if isinstance(given, dict) else {self.fields[0]: given}
    if set(each) != set(self.fields):
      raise UserError(f"{self.name}: given {', '.join(each)}; expected {', '.join(self.fields)}")
    return {
      field: self.read_field(field, np.asarray(each[field]), dict(data)[field]) for field in self.fields
    }

  def read_field(self, field: str, array: np.ndarray, like: jax.ShapeDtypeStruct) -> np.ndarray:
    array = array[None] if array.ndim == len(like.shape) else array
    if array.shape[1:] != like.shape or array.dtype.kind != like.dtype.kind:
      came, shape = f"{array.dtype} {list(array.shape)}", ", ".join(map(str, like.shape))
      raise UserError(f"{self.name}: {field} is {came}; expected {like.dtype} [{shape}] or [n, {shape}]")
    return array.astype(like.dtype)

  def embed(self, params: Any, inputs: Inputs, encode: Encode) -> dict[str, Any]:
    value = encode(inputs)[self.name]
    return {HELD: {self.name: (value, jnp.zeros(len(value), jnp.float32), jnp.ones(len(value), bool))}}
