"""The size and the crop of a picture as a condition."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.specs import Spec
from jldm.models.conditioners.conditioner import Conditioner, Encode, Inputs, check_fields
from jldm.nn.embedding import sinusoids

Array = jax.Array
COUNT = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes(Conditioner):
  """Stable Diffusion XL's sizes in pixels, Podell et al. 2023 (2307.01952), section 2.2, as sinusoids.

  They are the original height and width, top and left of the crop, and target height and width, with
  `features` sinusoids each.  A picture in training is whole and of its own size.  The null is a whole
  picture of `height` and `width`, which guidance does not push away from.
  """

  height: int = 1024
  width: int = 1024
  features: int = 256
  name: str = "sizes"
  guided: bool = False

  fields = ("image",)
  cached = True

  def draw_inputs(self, batch: dict, keys: Array) -> Inputs:
    check_fields(self, batch)
    count, height, width = batch["image"].shape[:3]
    return {"sizes": jnp.tile(jnp.float32(whole(height, width)), (count, 1))}

  def read_request(self, given: Any, data: Spec) -> Inputs:
    """Six numbers for all samples or [n, 6], or the height and width of a whole picture; else a UserError."""
    try:
      sizes = np.asarray(given, np.float32)
    except (TypeError, ValueError):
      sizes = np.empty(0, np.float32)
    sizes = np.float32(whole(*sizes)) if sizes.shape == (2,) else sizes
    sizes = sizes[None] if sizes.ndim == 1 else sizes
    if sizes.ndim != 2 or sizes.shape[1] != COUNT or not np.isfinite(sizes).all():
      raise UserError(
        f"{self.name}={given!r}; expected (height, width), or original height and width, top and left of the "
        "crop, and target height and width, perhaps per sample"
      )
    return {"sizes": sizes}

  def default_request(self, data: Spec) -> Any:
    """The height and width of the pictures that are drawn."""
    return dict(data)["image"].shape[:2]

  def embed(self, params: Any, inputs: Inputs, encode: Encode) -> dict[str, Array]:
    waves = sinusoids(inputs["sizes"], self.features)  # [B, 6, features]
    return {"vector": waves.reshape(len(waves), -1)}  # [B, 6 features]

  def null(self, params: Any, like: dict[str, Array]) -> dict[str, Array]:
    sizes = jnp.tile(jnp.float32(whole(self.height, self.width)), (len(like["vector"]), 1))
    return self.embed(params, {"sizes": sizes}, lambda each: each)


def whole(height: Any, width: Any) -> tuple:
  """The six numbers of a picture that is not cropped or resized."""
  return (height, width, 0, 0, height, width)
