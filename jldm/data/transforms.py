"""Converts pictures of any format to 8-bit grey or RGB and to one size, as PIL images."""

from collections.abc import Callable
import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jldm.core.errors import UserError


def to_8_bit(image: Image.Image) -> Image.Image:
  """The first frame, upright, in mode "L" or "RGB".

  | input                                  | output                                                       |
  |----------------------------------------|--------------------------------------------------------------|
  | animation, several pages               | the first frame                                              |
  | EXIF orientation                       | applied                                                      |
  | 8-bit grey (L), colour (RGB)           | kept                                                         |
  | 1-bit                                  | L, 0 and 255                                                 |
  | 16-bit grey (I;16, I)                  | L, level / 257 rounded: 0 ... 65535 becomes 0 ... 255        |
  | float grey (F)                         | L, from 0 ... 1, 0 ... 255 or 0 ... 65535, the first it fits |
  | CMYK, YCbCr, HSV                       | RGB, colour profiles ignored                                 |
  | palette                                | RGB, grey ones too                                           |
  | LA, RGBA, palette or colour with alpha | over white; L from LA, else RGB                              |

  Raises: UserError for float pictures with values that are not finite, ValueError for a mode that
    PIL cannot convert.
  """
  image.seek(0)
  return to_8_bit_mode(ImageOps.exif_transpose(image))


def to_8_bit_mode(image: Image.Image) -> Image.Image:
  """The mode conversion of `to_8_bit`: one frame in mode "L" or "RGB"."""
  if image.mode == "F" or image.mode.startswith("I"):
    return levels_to_grey(image)
  if image.has_transparency_data:
    return composite_over_white(image)
  if image.mode in ("L", "RGB"):
    return image
  return image.convert("L" if image.mode == "1" else "RGB")


def levels_to_grey(image: Image.Image) -> Image.Image:
  """Grey of 16 bits, 32 bits or floats as "L"; the largest value decides the range of floats."""
  levels = np.asarray(image).astype(np.float64)
  if not np.isfinite(levels).all():
    raise UserError(
      "float picture with values that are not finite; expected 0 ... 1, 0 ... 255 or 0 ... 65535"
    )
  largest = levels.max(initial=0) if image.mode == "F" else 65535
  white = next((white for white in (1, 255) if largest <= white), 65535)
  return Image.fromarray(np.clip(np.rint(levels * (255 / white)), 0, 255).astype(np.uint8))


def composite_over_white(image: Image.Image) -> Image.Image:
  """Composites a picture over white by its alpha; "L" if it has no colour."""
  grey = image.mode in ("1", "L", "LA")
  image = image.convert("RGBA")
  white = Image.new("RGBA", image.size, "white")
  return Image.alpha_composite(white, image).convert("L" if grey else "RGB")


def resize_to_cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
  """Resizes a picture (bicubic) so that it just covers `size` (height, width), then crops the centre."""
  height, width = size
  return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def pad_black(image: Image.Image, n: int) -> Image.Image:
  """Adds `n` black pixels on each side."""
  return ImageOps.expand(image, border=n, fill=0)


def to_channels(image: Image.Image, channels: int) -> np.ndarray:
  """The first frame, upright: uint8 [H, W, channels], 1 (grey) or 3 (RGB), plus alpha if it has any."""
  image.seek(0)
  image = ImageOps.exif_transpose(image)
  deep = image.mode == "F" or image.mode.startswith("I")
  if image.has_transparency_data and not deep:
    image = image.convert("RGBA").convert("LA" if channels == 1 else "RGBA")
  else:
    image = to_8_bit_mode(image).convert("L" if channels == 1 else "RGB")
  return np.asarray(image).reshape(image.height, image.width, -1)


def read_picture(path: str | os.PathLike, form: Callable[[Image.Image], Any] = to_8_bit) -> Any:
  """Decodes the picture in a file and applies `form`; UserError if it is damaged or not a picture."""
  try:
    with Image.open(path) as image:
      image.load()
      return form(image)
  except UnidentifiedImageError:
    reason = "unknown format"
  except (OSError, EOFError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    reason = " ".join(str(error).split())
  raise UserError(f"{path} cannot be read as a picture ({reason}); replace or remove it")
