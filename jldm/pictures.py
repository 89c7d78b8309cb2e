"""Pictures: arrays to files, with where they came from written inside.

Images are uint8 [N, H, W, C] or [H, W, C], C 1 (grey) or 3.  Every PNG says `ai_generated` = `true` and `jldm` = a JSON
object in its text chunks.  A file appears whole or not at all.
"""

from collections.abc import Iterator
import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

PAPER = 230  # the grey between the images and in empty places
MOST_ROWS = 40  # of a grid with a row a class
CELL = 64  # pixels that the shorter side of a small image is enlarged to in grid.png, about


def to_uint8(images: Any) -> np.ndarray:
  """Images float [..., H, W, C] in [-1, 1] -> uint8, rounded to nearest; what lies outside is clipped.

  Raises:
    ValueError: a value that is not finite.
  """
  images = np.asarray(images, np.float32)
  bad = images.size - np.count_nonzero(np.isfinite(images))
  if bad:
    raise ValueError(f"{bad} of {images.size} values are not finite; expected images in [-1, 1]")
  return np.clip(np.rint(127.5 * (images + 1)), 0, 255).astype(np.uint8)


def write_png(path: str | os.PathLike, image: np.ndarray, provenance: dict) -> None:
  """Writes uint8 [H, W, C] with `provenance`, a JSON object, beside it in the same file."""
  info = PngInfo()
  info.add_text("ai_generated", "true")
  info.add_text("jldm", json.dumps(provenance))
  with replacing(Path(path)) as file:
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG", pnginfo=info)


def read_provenance(path: str | os.PathLike) -> dict | None:
  """What write_png wrote beside the image; None where the file is a picture of someone else's.

  Raises:
    OSError: no such file, or not a picture.
  """
  with Image.open(path) as picture:
    text = picture.info.get("jldm")
  return json.loads(text) if text else None


def write_npz(path: str | os.PathLike, images: np.ndarray, labels: np.ndarray) -> None:
  """Writes `images` uint8 [N, H, W, C] and `labels` int64 [N]."""
  with replacing(Path(path)) as file:
    np.savez_compressed(file, images=images, labels=np.asarray(labels, np.int64))


def write_samples(folder: str | os.PathLike, images: np.ndarray, labels: np.ndarray, provenance: dict) -> None:
  """Writes images uint8 [N, H, W, C] as 00000.png ..., and grid.png, ten to a row.

  Each file's provenance has its own `index` and `label` besides `provenance`.  Numbered pictures that an earlier, longer
  draw left in the folder are removed, so that it holds one draw.
  """
  for path in Path(folder).glob("[0-9]" * 5 + ".png"):
    if int(path.stem) >= len(images) and read_provenance(path):
      path.unlink()
  for index, (image, label) in enumerate(zip(images, labels, strict=True)):
    write_png(Path(folder) / f"{index:05d}.png", image, provenance | {"index": index, "label": int(label)})
  scale = max(1, round(CELL / min(images.shape[1:3])))
  write_png(Path(folder) / "grid.png", class_rows(images, labels, 10, scale), provenance)


def tile(images: np.ndarray, columns: int, pad: int = 2, scale: int = 1) -> np.ndarray:
  """Images uint8 [N, H, W, C] -> one [rows (H scale + pad) + pad, columns (W scale + pad) + pad, C], row by row."""
  images = images.repeat(scale, 1).repeat(scale, 2)
  count, height, width, channels = images.shape
  rows = math.ceil(count / columns)
  cells = np.full((rows * columns, height + pad, width + pad, channels), PAPER, np.uint8)
  cells[:count, pad:, pad:] = images
  sheet = cells.reshape(rows, columns, height + pad, width + pad, channels).swapaxes(1, 2)
  sheet = sheet.reshape(rows * (height + pad), columns * (width + pad), channels)
  return np.pad(sheet, ((0, pad), (0, pad), (0, 0)), constant_values=PAPER)


def class_rows(images: np.ndarray, labels: np.ndarray, columns: int, scale: int = 1) -> np.ndarray:
  """A grid with a row a class, the first `columns` of each, for the first MOST_ROWS classes.

  Where there is one class only, or only -1 (unknown), its first columns^2 images as a square.
  """
  labels = np.asarray(labels)
  rows = [images[labels == label][:columns] for label in np.unique(labels)[:MOST_ROWS]]
  if len(rows) > 1:
    return tile_rows(rows, scale)
  shown = images[: columns**2]
  return tile(shown, math.ceil(math.sqrt(len(shown))), scale=scale)


def beside(originals: np.ndarray, reconstructions: np.ndarray, columns: int = 8, scale: int = 1) -> np.ndarray:
  """A grid of both uint8 [N, H, W, C]: a row of originals, below it the row of their reconstructions, and so on."""
  starts = range(0, len(originals), columns)
  return tile_rows([some[i : i + columns] for i in starts for some in (originals, reconstructions)], scale)


def tile_rows(rows: list[np.ndarray], scale: int = 1) -> np.ndarray:
  """Rows of images uint8 [n, H, W, C], n differing -> one image, the ends of short rows empty."""
  columns = max(map(len, rows))
  empty = np.full((columns, *rows[0].shape[1:]), PAPER, np.uint8)
  return tile(np.concatenate([part for row in rows for part in (row, empty[len(row) :])]), columns, scale=scale)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
  """A file to write that takes the place of `path` once whole; an error leaves what was there.  Makes the folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with open(temporary, "wb") as file:
      yield file
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
