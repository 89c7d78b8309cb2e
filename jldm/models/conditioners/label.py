"""A class as a condition."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.specs import Spec
from jldm.models.conditioners.conditioner import Conditioner, Encode, Inputs

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassLabel(Conditioner):
  """The integer `label` of an example, 0 to classes - 1; -1 is the unknown class, and null.

  Raises:
    UserError: no classes, and what Conditioner raises.
  """

  classes: int
  name: str = "label"

  fields = ("label",)

  def __post_init__(self):
    super().__post_init__()
    if self.classes < 1:
      raise UserError(
        f"ClassLabel(classes={self.classes}); expected at least 1, or no ClassLabel among the conditioners"
      )

  def draw_inputs(self, batch: dict, keys: Array) -> Inputs:
    return {"label": batch["label"]}

  def read_request(self, given: Any, data: Spec) -> Inputs:
    """A class or one per sample; UserError for fractions and classes that the model does not know."""
    whole = lambda numbers: np.isfinite(numbers) & (numbers == np.floor(numbers))
    labels = np.atleast_1d(np.asarray(given))
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.number) or not whole(labels).all():
      raise UserError(f"{self.name}={given!r}; expected a whole number, or one per sample")
    illegal = labels[(labels < -1) | (labels >= self.classes)]
    if illegal.size:
      raise UserError(
        f"{self.name}={int(illegal[0])}; expected -1 (unconditional) or 0 to {self.classes - 1}"
      )
    return {"label": labels.astype(np.int32)}

  def embed(self, params: Any, inputs: Inputs, encode: Encode) -> dict[str, Array]:
    return {"label": inputs["label"]}

  def null(self, params: Any, like: dict[str, Array]) -> dict[str, Array]:
    return {"label": jnp.full_like(like["label"], -1)}
