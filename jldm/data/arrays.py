"""Reads pictures from files of arrays, .npz and idx; sizes are checked before any memory is taken."""

import gzip
import math
import os
from pathlib import Path
from typing import IO
import zipfile
import zlib

import numpy as np

from jldm.core.errors import UserError
from jldm.data.contents import MAX_BYTES
from jldm.media.open import open_regular

MORE = 2**16  # bytes that are read beyond what an idx file should hold, to say how long it is
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class TooLarge(Exception):
  """An array above the limit; the text is its size."""


def read_npz(
  path: str | os.PathLike, max_bytes: int = MAX_BYTES, origin: str = ""
) -> tuple[np.ndarray, np.ndarray | None]:
  """`images` uint8 [N, H, W] or [N, H, W, C], C 1 or 3, and `labels` int [N] or None, of an .npz file.

  origin: what errors call the file; by default its path.

  Raises:
    UserError: whatever is wrong with the file, in one line.
  """
  origin = origin or f"'{path}'"
  try:
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
      images, labels = (read_member(archive, name, max_bytes) for name in ("images", "labels"))
  except TooLarge as error:
    raise UserError(
      f"{origin} has arrays of {error} bytes, more than max_bytes={max_bytes}; "
      "if it is sound, raise the limit with --max-bytes"
    ) from error
  except Exception as error:  # zipfile, zlib and numpy raise any for a damaged file
    raise UserError(
      f"{origin} cannot be read as .npz without pickle ({' '.join(str(error).split())}); "
      "expected an .npz with images and labels, arrays of numbers"
    ) from error
  if images is None:
    raise UserError(f"{origin} has no 'images'; expected uint8 [N, H, W] or [N, H, W, C]")
  shape = images.shape
  picture = len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3))
  if images.dtype != np.uint8 or not picture or not images.size:
    raise UserError(
      f"{origin} has images {images.dtype} {list(shape)}; expected uint8 [N, H, W] or [N, H, W, C], C 1 or 3"
    )
  if labels is not None and (labels.dtype.kind not in "iu" or labels.shape != shape[:1] or labels.min() < -1):
    raise UserError(
      f"{origin} has labels {labels.dtype} {list(labels.shape)}; "
      f"expected integers [{shape[0]}] from -1 (unknown) up"
    )
  return images, labels


def read_member(archive: zipfile.ZipFile, name: str, max_bytes: int) -> np.ndarray | None:
  """The array `name` of an .npz file, None if it has none; its header is checked first.

  Raises:
    TooLarge: more than `max_bytes`.
    Exception: any, for a damaged file.
  """
  if f"{name}.npy" not in archive.namelist():
    return None
  info = archive.getinfo(f"{name}.npy")
  with archive.open(info) as file:
    version = np.lib.format.read_magic(file)
    shape, _, dtype = HEADERS[version](file)
  if dtype.hasobject or dtype.names:
    raise ValueError(f"{name} of dtype {dtype}")
  size = math.prod(shape) * dtype.itemsize
  if size > max_bytes:
    raise TooLarge(size)
  if size > info.file_size or min(shape, default=0) < 0:
    raise ValueError(f"{name} of shape {list(shape)} in {info.file_size} bytes")
  with archive.open(info) as file:
    return np.lib.format.read_array(file, allow_pickle=False)


def read_idx(path: Path, rank: int, max_bytes: int = MAX_BYTES) -> np.ndarray:
  """An IDX file, gzipped or not, as uint8 with `rank` axes; UserError if its header or length is wrong."""
  magic, start = bytes([0, 0, 8, rank]), 4 + 4 * rank  # 8: unsigned bytes; then the sizes, big-endian
  try:
    with open_regular(path) as file:
      zipped = file.read(2) == b"\x1f\x8b"
      file.seek(0)
      return read_idx_values(gzip.GzipFile(fileobj=file) if zipped else file, path, magic, start, max_bytes)
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"'{path}' cannot be read ({error}); download it again") from error


def read_idx_values(file: IO[bytes], path: Path, magic: bytes, start: int, max_bytes: int) -> np.ndarray:
  """The array of an unzipped IDX file whose header has `start` bytes."""
  head = file.read(start)
  if head[:4] != magic or len(head) < start:
    raise UserError(
      f"'{path}' begins with {head[:4].hex() or 'nothing'}; expected {magic.hex()} (IDX, {magic[3]} axes)"
    )
  shape = [int(n) for n in np.frombuffer(head, ">u4", magic[3], 4)]
  expected = math.prod(shape)
  if expected > max_bytes:
    raise UserError(
      f"'{path}' has {expected} bytes of data by its shape {shape}, more than max_bytes={max_bytes}; "
      "if it is sound, raise the limit with --max-bytes"
    )
  data = file.read(expected + MORE)
  if len(data) != expected:
    came = f"{len(data)} bytes" if len(data) < expected + MORE else f"at least {len(data)} bytes"
    raise UserError(f"'{path}' has {came} of data; expected {expected} for shape {shape}; download it again")
  return np.frombuffer(data, np.uint8).reshape(shape)
