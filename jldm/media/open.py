"""Opens pictures from anywhere: every picture that jldm reads comes through here.

Only the formats of FORMATS are tried, whatever a file's name says: each is decoded within the process
(an EPS file would start Ghostscript).  Sizes are checked before anything is decoded.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import io
import os
from pathlib import Path
import re
import stat
import struct
import threading
from typing import IO, Any
import warnings

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from jldm.core.errors import UserError

FORMATS = (
  "PNG",
  "JPEG",
  "WEBP",
  "TIFF",
  "BMP",
  "DIB",
  "GIF",
  "PPM",
  "TGA",
  "AVIF",
  "JPEG2000",
  "PCX",
  "SGI",
  "QOI",
)
BY_ANOTHER = {"MPO": "JPEG"}  # a format of the extension table -> the format that opens it
MAX_PIXELS = 178_956_970  # of one picture; Pillow's own limit
LARGE = 2**25  # pixels above which pictures are decoded one at a time, and converted in strips
STRIP = 2**22  # pixels of such a strip
ORIENTATION = 0x0112  # the number of an EXIF tag
TRANSPOSES = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
REFUSED = "refused"  # what stands for the transform of a profile that littleCMS cannot read
SRGB_TOLERANCE = 2  # grey levels by which a profile may differ from sRGB and count as sRGB

# Pillow warns of damaged EXIF and of sizes without the path; both are handled here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", "Corrupt EXIF|Tag data larger|Metadata Warning|Truncated", module=r"PIL\.")

limit_lock, limit_users, limit_before = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS
large_lock = threading.RLock()


class PictureError(OSError):
  """A file that cannot be read as a picture; the text is the reason alone, in one line."""


@functools.cache
def extensions() -> tuple[str, ...]:
  """The extensions of FORMATS, such as "jfif", as far as this Pillow has their decoders."""
  Image.init()
  by_format: dict[str, list[str]] = {}
  for extension, name in sorted(Image.registered_extensions().items()):
    by_format.setdefault(BY_ANOTHER.get(name, name), []).append(extension.removeprefix("."))
  return tuple(extension for name in legal_formats() for extension in by_format.get(name, ()))


@functools.cache
def legal_formats() -> tuple[str, ...]:
  """FORMATS, without those that this Pillow was built without."""
  Image.init()
  return tuple(name for name in FORMATS if name in Image.OPEN)


def decode_picture(
  source: str | os.PathLike | bytes,
  form: Callable[[Image.Image], Any],
  max_pixels: int = MAX_PIXELS,
  header_only: bool = False,
  formats: tuple[str, ...] = FORMATS,
) -> Any:
  """Decodes a picture and returns `form` of it.

  source: the path of a file, or the contents of one.
  header_only: whether pixels are left to `form` to decode; else they are before it is called.
  formats: those that are tried, some of FORMATS.

  Raises:
    PictureError: whatever is wrong with the picture, in one line.
    UserError: whatever `form` refuses.
  """
  try:
    with open_limited(source, max_pixels, formats) as image:
      pixels = image.width * image.height
      with large_lock if pixels > LARGE and not header_only else contextlib.nullcontext():
        if not header_only:
          image.load()
        return form(image)
  except (UserError, PictureError):
    raise
  except UnidentifiedImageError:
    reason = "unknown format"
  except Image.DecompressionBombError as error:
    found = re.search(r"\d+ pixels", str(error))
    reason = (
      f"{found.group() if found else 'too many pixels'}, more than max_pixels={max_pixels}; "
      "if it is sound, raise the limit with --max-pixels"
    )
  except Exception as error:  # Pillow's decoders raise any, and of a picture all mean the same
    reason = " ".join(str(error).split()) or type(error).__name__
  raise PictureError(reason)


@contextlib.contextmanager
def open_limited(
  source: str | os.PathLike | bytes, max_pixels: int, formats: tuple[str, ...]
) -> Iterator[Image.Image]:
  """A picture of at most `max_pixels` and one of `formats`, its header read.

  Raises:
    Whatever Pillow raises; PictureError if it is no file.
  """
  file = io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
  legal = tuple(name for name in formats if name in legal_formats())
  with file, pillow_limit(max_pixels), Image.open(file, formats=legal) as image:
    yield image


def open_regular(path: str | os.PathLike) -> IO[bytes]:
  """A file to read; PictureError for a FIFO, a socket, a device or a folder, which is never waited for."""
  mode = os.stat(path).st_mode
  if not stat.S_ISREG(mode):
    raise PictureError("a folder" if stat.S_ISDIR(mode) else "a FIFO, a socket or a device, not a file")
  return Path(path).open("rb")


@contextlib.contextmanager
def pillow_limit(max_pixels: int) -> Iterator[None]:
  """Sets Pillow's limit of pixels, which is global, until all blocks of all threads have ended."""
  global limit_users, limit_before
  with limit_lock:
    limit_before = Image.MAX_IMAGE_PIXELS if limit_users == 0 else limit_before
    limit_users += 1
    Image.MAX_IMAGE_PIXELS = max_pixels / 2  # Pillow refuses what is over twice that
  try:
    yield
  finally:
    with limit_lock:
      limit_users -= 1
      if limit_users == 0:
        Image.MAX_IMAGE_PIXELS = limit_before


def upright(image: Image.Image) -> Image.Image:
  """The picture turned as its EXIF orientation says."""
  method = TRANSPOSES.get(read_orientation(image))
  return image if method is None else image.transpose(method)


def read_orientation(image: Image.Image) -> int:
  """The EXIF orientation, 1 to 8; 1 if there is none.  Damage of any other tag does not matter."""
  try:
    value = image.getexif().get(ORIENTATION)
  except Exception:  # of a malformed tag; the bytes may still have the orientation
    value = None
  if isinstance(value, int) and 1 <= value <= 8:
    return value
  data = image.info.get("exif")
  return find_orientation(data) if isinstance(data, bytes) else 1


def find_orientation(data: bytes) -> int:
  """The orientation in the bytes of an EXIF block, read from its first directory alone; 1 without one."""
  data = data.removeprefix(b"Exif\0\0")
  order = {b"II": "<", b"MM": ">"}.get(data[:2])
  try:
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    for place in range(start + 2, start + 2 + 12 * count, 12):
      tag, kind = struct.unpack_from(f"{order}HH", data, place)
      if tag == ORIENTATION:
        (value,) = struct.unpack_from(f"{order}{ {1: 'B', 3: 'H', 4: 'I'}[kind] }", data, place + 8)
        return value if 1 <= value <= 8 else 1
  except (struct.error, KeyError):
    pass
  return 1


def to_srgb(image: Image.Image) -> Image.Image:
  """The colours of an RGB or RGBA picture in sRGB, by its colour profile.

  It is unchanged without one, and with one that littleCMS refuses.
  """
  transform = srgb_transform(image)
  return image if transform in (None, REFUSED) else ImageCms.applyTransform(image, transform)


def srgb_transform(image: Image.Image) -> Any:
  """The transform of an RGB or RGBA picture to sRGB; None if it needs none, or REFUSED."""
  profile = image.info.get("icc_profile")
  if not isinstance(profile, bytes) or not profile or image.mode not in ("RGB", "RGBA"):
    return None
  return build_transform(profile, image.mode)


@functools.lru_cache(maxsize=32)
def build_transform(profile: bytes, mode: str) -> Any:
  """The transform of a profile to sRGB; None if it is sRGB, or REFUSED."""
  try:
    transform = ImageCms.buildTransform(
      ImageCms.ImageCmsProfile(io.BytesIO(profile)),
      ImageCms.createProfile("sRGB"),
      mode,
      mode,
      flags=ImageCms.Flags.NOCACHE,  # its cache is shared by threads
    )
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    probe = Image.fromarray(colours).convert(mode)
    moved = np.asarray(ImageCms.applyTransform(probe, transform))[..., :3]
  except (
    Exception
  ):  # littleCMS and its binding raise several for a profile that is damaged or of another kind
    return REFUSED
  same = np.abs(moved.astype(int) - colours).max() <= SRGB_TOLERANCE
  return None if same else transform


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
  """A picture in strips of whole rows, each with its first row; one strip unless it is large."""
  if image.width * image.height <= LARGE:
    yield 0, image
    return
  rows = max(1, STRIP // image.width)
  for top in range(0, image.height, rows):
    yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def convert_in_strips(
  image: Image.Image, convert: Callable[[Image.Image], Image.Image], mode: str
) -> Image.Image:
  """`convert`, which works pixel by pixel and gives `mode`, with little memory besides the result."""
  if image.width * image.height <= LARGE:
    return convert(image)
  result = Image.new(mode, image.size)
  for top, strip in strips(image):
    result.paste(convert(strip), (0, top))
  return result
