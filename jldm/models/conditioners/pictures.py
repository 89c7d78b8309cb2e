"""Pictures as conditions: their latents as further channels of the noisy latent.

  Masked   the latent of what is known of a picture, and where that is
  Paired   the latent of another picture, which is made of it: grey of colour, blurred of sharp

Concatenation is how latent diffusion inpaints and enlarges: Rombach et al. 2022 (2112.10752),
sections 3.3, 4.4 and 4.5.  The null, zeros, means that nothing is known (Brooks et al. 2022,
2211.09800, eq. 3).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.specs import Spec
from jldm.models.codecs.codec import pixels
from jldm.models.conditioners import masks
from jldm.models.conditioners.conditioner import Conditioner, Encode, Inputs
from jldm.models.conditioners.degradation import Downsampled

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masked(Conditioner):
  """A picture with random `shapes` of `masks` hidden, masked and encoded anew at each training step.

  A request gives (images, known): uint8 or float in [-1, 1], [n, H, W, C], and 1 where a pixel is
  known, [n, H, W, 1] or [H, W].

  as_diffusers: the channels of Stable Diffusion's inpainting network: where to paint, then the latents of
    the picture with grey there.  A request that does not name it paints all.
  """

  shapes: tuple[str, ...] = tuple(masks.SHAPES)
  as_diffusers: bool = False
  name: str = "masked"
  guided: bool = False

  fields = ("image",)

  def __post_init__(self):
    super().__post_init__()
    masks.check_shapes(self.shapes)

  def draw_inputs(self, batch: dict, keys: Array) -> Inputs:
    images = pixels(batch["image"])
    return {"image": images, "known": masks.draw_masks(self.shapes, keys, images.shape[1:3])}

  def read_request(self, given: Any, data: Spec) -> Inputs:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
      raise UserError(
        f"{self.name}: expected (images [n, H, W, C], known [n, H, W, 1], 1 where a pixel is known)"
      )
    images, known = read_images(self.name, given[0], data), np.asarray(given[1], np.float32)
    known = known[None, ..., None] if known.ndim == 2 else known
    if known.ndim != 4 or known.shape[1:] != (*images.shape[1:3], 1) or len(known) not in (1, len(images)):
      raise UserError(
        f"{self.name}: known of shape {list(known.shape)} and images of {list(images.shape)}; expected "
        f"{[len(images), *images.shape[1:3], 1]}, 1 where a pixel is known"
      )
    return {"image": images, "known": np.broadcast_to(known, (len(images), *known.shape[1:]))}

  def default_request(self, data: Spec) -> Any:
    if not self.as_diffusers:
      return None
    height, width, channels = dict(data)["image"].shape
    return np.zeros((1, height, width, channels), np.float32), np.zeros((1, height, width, 1), np.float32)

  def embed(self, params: Any, inputs: Inputs, encode: Encode) -> dict[str, Array]:
    """What is hidden is filled before it is encoded: [B, h, w, c + 1]."""
    images, known = inputs["image"], inputs["known"]
    if self.as_diffusers:
      z = encode({"image": images * known})
      factor = images.shape[1] // z.shape[1]
      return {"concat": jnp.concatenate([1 - known[:, ::factor, ::factor], z], -1)}  # [B, h, w, 1 + c]
    z = encode({"image": masks.fill_hidden(images, known)})
    return {"concat": jnp.concatenate([z, masks.known_share(known, images.shape[1] // z.shape[1])], -1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paired(Conditioner):
  """The latent of a degraded picture, encoded once per example, so its degradation is always the same.

  A request gives the source pictures, uint8 or float in [-1, 1], [n, H, W, C].
  """

  degradation: Any = Downsampled()
  name: str = "paired"
  dropout: float = 0.0
  guided: bool = False

  fields = ("image",)
  cached = True

  def draw_inputs(self, batch: dict, keys: Array) -> Inputs:
    return {"image": self.degradation(pixels(batch["image"]), keys)}

  def read_request(self, given: Any, data: Spec) -> Inputs:
    return {"image": read_images(self.name, given, data)}

  def embed(self, params: Any, inputs: Inputs, encode: Encode) -> dict[str, Array]:
    return {"concat": encode(inputs)}


def read_images(name: str, images: Any, data: Spec) -> np.ndarray:
  """Pictures as float32 in [-1, 1], [n, H, W, C]; UserError for other shapes and types."""
  images, expected = np.asarray(images), dict(data)["image"].shape
  if images.ndim != 4 or images.shape[1:] != expected:
    raise UserError(
      f"{name}: images of shape {list(images.shape)}; expected [n, {', '.join(map(str, expected))}]"
    )
  if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
    raise UserError(f"{name}: images of {images.dtype}; expected uint8, or floats in [-1, 1]")
  return np.asarray(pixels(images), np.float32)
