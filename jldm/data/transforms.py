"""Converts pictures of any format to 8-bit grey or RGB and to one size, as PIL images."""

from collections.abc import Callable, Mapping
import os
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from jldm.core.errors import UserError
from jldm.media import open as opening

GREY_MODES = ("1", "L", "LA", "La", "F")  # besides those of 16 and 32 bits, "I..."
LEVELS = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0))  # black and white of float pictures
OVERSHOOT = 1 / 8  # of a range, by which levels may exceed it at either end
LARGE_PIXELS = 89_478_485  # those that Pillow warns of

Levels = tuple[float, float]


class Measured(NamedTuple):
  """What the first pass over a picture finds."""

  height: int
  width: int
  grey: bool
  levels: Levels | None  # the least and the greatest value of a float picture
  notes: tuple[str, ...]  # what is converted


def to_8_bit(image: Image.Image, levels: Levels | None = None) -> Image.Image:
  """The first frame, upright, in mode "L" or "RGB".

  levels: what is black and what is white in float pictures; by default what `choose_levels` says.

  | input                                  | output                                                          |
  |----------------------------------------|-----------------------------------------------------------------|
  | animation, several pages               | the first frame                                                 |
  | EXIF orientation                       | applied                                                         |
  | 8-bit grey (L), colour (RGB)           | kept                                                            |
  | colour profile of RGB                  | converted to sRGB, or ignored if littleCMS refuses it           |
  | 1-bit                                  | L, 0 and 255                                                    |
  | 16-bit grey (I;16, I)                  | L, level / 257 rounded: 0 ... 65535 becomes 0 ... 255           |
  | float grey (F)                         | L, from the first of LEVELS that fits, up to 1/8 exceeded       |
  | CMYK, YCbCr, HSV                       | RGB, colour profiles ignored                                    |
  | palette                                | RGB, grey ones too                                              |
  | LA, RGBA, palette or colour with alpha | over white; L from LA, else RGB                                 |

  Raises:
    UserError: levels of float or 32-bit pictures that are not finite or fit no range.
    ValueError: a mode that PIL cannot convert.
  """
  image.seek(0)
  return to_8_bit_mode(opening.upright(image), levels)


def to_8_bit_mode(image: Image.Image, levels: Levels | None = None) -> Image.Image:
  """The mode conversion of `to_8_bit`: one frame in mode "L" or "RGB"."""
  if is_deep(image):
    return levels_to_grey(image, levels)
  mode = "L" if image.mode in GREY_MODES else "RGB"
  if image.mode == mode and not image.has_transparency_data and opening.srgb_transform(image) is None:
    return image
  return opening.convert_in_strips(image, lambda strip: flatten_alpha(strip, mode), mode)


def is_deep(image: Image.Image) -> bool:
  """Whether a picture has more than 8 bits per pixel and channel."""
  return image.mode == "F" or image.mode.startswith("I")


def levels_to_grey(image: Image.Image, levels: Levels | None = None) -> Image.Image:
  """Grey of 16 bits, 32 bits or floats as "L"."""
  ends = find_levels(image) if image.mode in ("F", "I") else None
  black, white = (levels or choose_levels(*ends)) if image.mode == "F" else (0.0, 65535.0)

  def scale(strip: Image.Image) -> Image.Image:
    share = (np.asarray(strip).astype(np.float64) - black) * (255 / (white - black))
    return Image.fromarray(np.clip(np.rint(share), 0, 255).astype(np.uint8))

  return opening.convert_in_strips(image, scale, "L")


def find_levels(image: Image.Image) -> Levels:
  """The least and the greatest value of a picture of 32 bits; UserError for values that cannot be shown."""
  ends = []
  for _, strip in opening.strips(image):
    values = np.asarray(strip)
    ends += [float(values.min()), float(values.max())]  # NaN if any value is
  if not np.isfinite(ends).all():
    raise UserError(f"float picture with values that are not finite; expected {format_levels()}")
  low, high = min(ends), max(ends)
  if image.mode != "F" and (low < 0 or high > 65535):
    raise UserError(f"32-bit levels {low:g} ... {high:g}; expected 0 ... 65535")
  return low, high


def choose_levels(low: float, high: float) -> Levels:
  """What is black and what is white, if values lie in low ... high; UserError if none of LEVELS fits."""
  for black, white in LEVELS:
    above = OVERSHOOT * (white - black)
    below = OVERSHOOT * min(white - black, max(high, 1))  # values around 0 are no dark picture of 0 ... 255
    if black - below <= low and high <= white + above:
      return black, white
  raise UserError(f"float levels {low:g} ... {high:g}; expected {format_levels()}")


def format_levels() -> str:
  """The legal levels as text."""
  *first, last = (f"{black:g} ... {white:g}" for black, white in LEVELS)
  return f"{', '.join(first)} or {last}"


def flatten_alpha(image: Image.Image, mode: str) -> Image.Image:
  """A picture in `mode`, "L" or "RGB", composited over white by its alpha; colours in sRGB."""
  in_srgb = opening.to_srgb if mode == "RGB" else (lambda grey: grey)
  if not image.has_transparency_data:
    return in_srgb(image.convert(mode))
  image = in_srgb(image.convert("RGBA"))
  white = Image.new("RGBA", image.size, "white")
  return Image.alpha_composite(white, image).convert(mode)


def resize_to_cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
  """Resizes a picture (bicubic) so that it just covers `size` (height, width), then crops the centre."""
  height, width = size
  return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)


def pad_black(image: Image.Image, n: int) -> Image.Image:
  """Adds `n` black pixels on each side."""
  return ImageOps.expand(image, border=n, fill=0)


def to_channels(image: Image.Image, channels: int, levels: Levels | None = None) -> np.ndarray:
  """The first frame, upright: uint8 [H, W, channels], 1 (grey) or 3 (RGB), plus alpha if it has any.

  levels: as of `to_8_bit`.
  """
  image.seek(0)
  image = opening.upright(image)
  if image.has_transparency_data and not is_deep(image):
    mode = "LA" if channels == 1 else "RGBA"
    colours = opening.to_srgb if image.mode not in GREY_MODES else (lambda grey: grey)
    image = opening.convert_in_strips(image, lambda strip: colours(strip.convert("RGBA")).convert(mode), mode)
  else:
    image = to_8_bit_mode(image, levels).convert("L" if channels == 1 else "RGB")
  return np.asarray(image).reshape(image.height, image.width, -1)


def to_repaint(image: Image.Image) -> np.ndarray:
  """A mask as bool [H, W]: whether a pixel is white and opaque, by luminance x alpha >= 128."""
  image.seek(0)
  image = opening.upright(image)
  if is_deep(image):
    opaque = np.asarray(image) != image.info.get("transparency", np.nan)
    return (np.asarray(levels_to_grey(image)) >= 128) & opaque
  layers = np.asarray(image.convert("RGBA").convert("LA"), np.uint16)
  return layers[..., 0] * layers[..., 1] >= 128 * 255


def common_levels(ends: Mapping[str, Levels | None]) -> Levels | None:
  """What is black and white in all float pictures, as one rule; `ends` are their extremes by file.

  Raises:
    UserError: no range fits; names the pictures of the least and the greatest value.
  """
  ends = {path: levels for path, levels in ends.items() if levels}
  if not ends:
    return None
  darkest = min(ends, key=lambda path: ends[path][0])
  brightest = max(ends, key=lambda path: ends[path][1])
  try:
    return choose_levels(ends[darkest][0], ends[brightest][1])
  except UserError as error:
    raise UserError(
      f"{error} over all float pictures (least in '{darkest}', greatest in '{brightest}'); rescale them"
    ) from error


def measure_picture(image: Image.Image) -> Measured:
  """What is known of a decoded picture before it is converted."""
  deep = is_deep(image)
  grey = deep or image.mode in GREY_MODES
  orientation = opening.read_orientation(image)
  height, width = (image.width, image.height) if orientation >= 5 else (image.height, image.width)
  levels = find_levels(image) if image.mode in ("F", "I") else None
  transform = opening.srgb_transform(image)
  notes = {
    "16 or 32 bits to 8": deep and image.mode != "F",
    "float levels to 8 bits": image.mode == "F",
    "transparent, put over white": image.has_transparency_data and not deep,
    "palette to RGB": image.mode in ("P", "PA"),
    f"{image.mode} to RGB": image.mode in ("CMYK", "YCbCr", "LAB", "HSV"),
    "colours to sRGB by their profile": transform not in (None, opening.REFUSED),
    "colours as stored, as their profile cannot be read": transform == opening.REFUSED,
    "turned upright by EXIF": orientation > 1,
    f"decoded from over {LARGE_PIXELS} pixels": height * width > LARGE_PIXELS,
    "the first frame of several": has_more_frames(image),
  }
  applied = tuple(note for note, applies in notes.items() if applies)
  return Measured(height, width, grey, levels if image.mode == "F" else None, applied)


def has_more_frames(image: Image.Image) -> bool:
  """Whether a second frame can be read; the picture is left at it."""
  try:
    image.seek(1)
  except Exception:  # EOFError without one; any of Pillow's for one that is damaged
    return False
  return True


def read_picture(
  path: str | os.PathLike,
  form: Callable[[Image.Image], Any] = to_8_bit,
  max_pixels: int = opening.MAX_PIXELS,
  header_only: bool = False,
) -> Any:
  """Decodes the picture in a file and applies `form`; UserError if it is damaged or not a picture.

  header_only: as of `decode_picture`.
  """
  try:
    return opening.decode_picture(path, form, max_pixels, header_only)
  except (opening.PictureError, UserError) as error:
    raise UserError(f"{path} cannot be read as a picture ({error}); replace or remove it") from error
