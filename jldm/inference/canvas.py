"""Converts pictures of any size, with or without alpha, to what a model takes, and back.

Colours are edited over white, as in training; alpha is kept unchanged.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from jldm.core.errors import UserError
from jldm.core.specs import batch_shapes
from jldm.distributed import memory
from jldm.inference.model import Model, resize_data, resize_model
from jldm.models.codecs.images import ImageCodec
from jldm.models.codecs.tiled import Tiled
from jldm.models.codecs.tiling import Blended


class Canvas(NamedTuple):
  """Pictures as the model takes them, and the originals."""

  model: Model  # of their size
  images: np.ndarray  # uint8 [N, H', W', C], over white, edges repeated up to sides that the model can halve
  source: np.ndarray  # uint8 [N, H, W, C or C + 1]

  @property
  def inside(self) -> np.ndarray:
    """1 where a pixel is one of the picture: float32 [1, H', W', 1]."""
    return np.pad(np.ones((1, *self.source.shape[1:3], 1), np.float32), self.margins)

  @property
  def margins(self) -> tuple:
    (_, h, w, _), (_, height, width, _) = self.source.shape, self.images.shape
    return (0, 0), (0, height - h), (0, width - w), (0, 0)


@functools.lru_cache
def side_multiple(model: Model) -> int:
  """The smallest side in pixels that the model takes: the codec's factor times a power of two."""
  sides = [model.codec.factor * 2**power for power in range(8)]
  for side in sides:
    try:
      resize_model(model, (side, side))
    except UserError:
      continue
    return side
  raise UserError(
    f"the model takes no square picture with a side of {', '.join(map(str, sides))}; edits need one of them"
  )


def image_channels(model: Model) -> int:
  """How many channels its pictures have."""
  return dict(model.data)["image"].shape[-1]


def fit_codec(model: Model, params: dict, images: np.ndarray, copies: int = 1) -> tuple[Model, str]:
  """The model for pictures [N, H, W, ...], each edited `copies` times, and a line if it works in tiles.

  The codec encodes and decodes in tiles if pictures larger than those of training cannot fit into memory.
  """
  count, *size = images.shape[:3]
  if not isinstance(model.codec, ImageCodec):
    return model, ""
  if math.prod(size) <= math.prod(dict(model.data)["image"].shape[:2]):
    return model, ""
  large = resize_data(model, tuple(side + -side % model.codec.factor for side in size))
  needed = max(
    memory.largest_operation(model.codec.encode, params["codec"], batch_shapes(large.data, count)),
    memory.largest_operation(model.codec.decode, params["codec"], large.latents(count * copies)),
  )
  there, tiles = memory.available_memory(), Blended()
  if needed <= there.size:
    return model, ""
  what = f"{size[1]}x{size[0]} pixels in one piece need at least {memory.bytes_text(needed)} of memory"
  how = (
    f"in tiles of {tiles.tile * model.codec.factor} pixels, blended over {tiles.overlap * model.codec.factor}"
  )
  return dataclasses.replace(model, codec=Tiled(model.codec, tiles)), f"{what}, and there are {there}: {how}"


def open_canvas(model: Model, images: Any) -> Canvas:
  """Raises a UserError where pictures are not uint8 [N, H, W, C] with the model's channels, or alpha
  besides, or the model's latents have no places [h, w, c].
  """
  if len(model.latent_shape) != 3:
    raise UserError(f"latents of shape {list(model.latent_shape)}; edits of pictures need latents [h, w, c]")
  images, channels = np.asarray(images), image_channels(model)
  if (
    images.dtype != np.uint8
    or images.ndim != 4
    or images.shape[-1] - channels not in (0, 1)
    or not images.size
  ):
    expected = f"uint8 [N, H, W, {channels}], or {channels + 1} with alpha"
    raise UserError(f"pictures {images.dtype} of shape {list(images.shape)}; expected {expected}")
  flat = images[..., :channels]
  if images.shape[-1] > channels:
    share = opacity(images)
    flat = np.rint(share * flat + (1 - share) * 255).astype(np.uint8)
  side, (height, width) = side_multiple(model), images.shape[1:3]
  flat = np.pad(flat, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)), mode="edge")
  return Canvas(resize_model(model, flat.shape[1:3]), flat, images)


def close_canvas(canvas: Canvas, images: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
  """Edits uint8 [N n, H', W', C], n of each picture -> [N n, H, W, C or C + 1].

  They are the source, bit for bit, where known [N, H, W, 1] is 1.
  """
  copies, (height, width, channels) = (
    len(images) // len(canvas.source),
    (*canvas.source.shape[1:3], images.shape[-1]),
  )
  source, images = np.repeat(canvas.source, copies, 0), images[:, :height, :width]
  if source.shape[-1] > channels:
    images = np.concatenate([remove_white(images, source), source[..., channels:]], -1)
  return images if known is None else np.where(np.repeat(known, copies, 0) == 1, source, images)


def opacity(images: np.ndarray) -> np.ndarray:
  """Alpha of uint8 [..., C + 1] as a share [..., 1]."""
  return images[..., -1:].astype(np.float32) / 255


def remove_white(images: np.ndarray, source: np.ndarray) -> np.ndarray:
  """Removes the white background: colours uint8 [..., C] that give `images` over white with the alpha of
  `source`.

  Where alpha is 0, the colours of `source` stay.
  """
  share = opacity(source)
  straight = np.clip(np.rint((images - (1 - share) * 255) / np.maximum(share, 1 / 255)), 0, 255)
  return np.where(share > 0, straight, source[..., :-1]).astype(np.uint8)


def check_known(canvas: Canvas, known: Any) -> np.ndarray:
  """A mask [N or 1, H, W, 1] or [H, W], 1 where a pixel is kept -> float32 [N, H, W, 1].

  Raises:
    UserError: another size, values besides 0 and 1, or nothing to repaint.
  """
  known, (count, height, width, _) = np.asarray(known, np.float32), canvas.source.shape
  known = known[None, ..., None] if known.ndim == 2 else known
  if known.ndim != 4 or known.shape[0] not in (1, count) or known.shape[1:] != (height, width, 1):
    raise UserError(
      f"a mask of shape {list(known.shape)} for pictures of {height}x{width}; expected one of the same size"
    )
  if not np.isin(known, (0, 1)).all():
    raise UserError(
      "the mask has other values than 0 and 1; expected 1 where a pixel is kept and 0 where it is repainted"
    )
  if known.all():
    raise UserError("the mask is empty: nothing is to be repainted; mark it in white (in Python: known 0)")
  return np.broadcast_to(known, (count, height, width, 1))


def extend_pictures(
  images: np.ndarray, top: int, right: int, bottom: int, left: int
) -> tuple[np.ndarray, np.ndarray]:
  """Pads pictures uint8 [N, H, W, C] by repeating their edges; also returns the mask of known pixels,
  float32 [1, H', W', 1].

  Raises:
    UserError: a negative margin, or none at all.
  """
  if min(top, right, bottom, left) < 0 or not any((top, right, bottom, left)):
    raise UserError(
      f"margins {top},{right},{bottom},{left}; expected numbers of pixels, at least one above 0"
    )
  margins = (0, 0), (top, bottom), (left, right), (0, 0)
  return np.pad(images, margins, mode="edge"), np.pad(
    np.ones((1, *images.shape[1:3], 1), np.float32), margins
  )
