"""Sheets, grids and plots: several images as one picture to look at.

Images are uint8 [N, H, W, C] or [H, W, C], C 1 (grey) or 3.
"""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from jldm.core.errors import UserError, printable

PAPER = 230  # the grey between the images and in empty places
MOST_ROWS = 40  # of a grid with a row a class
MOST_LETTERS = 24  # of the name of a class beside its row
SHOWN_COLUMNS = 8  # of `show`, at most
TEXT_HEIGHT = 14  # pixels of the line under an image that has a label
COLORS = ("#1f4e9c", "#c8501e", "#2e8b3d", "#7b3fa0", "#00a0b0", "#d6336c", "#8a6d00", "#707070")  # of lines
CELL = 64  # pixels that the shorter side of a small image is enlarged to in grid.png, about


def show(
  images: np.ndarray | Sequence[np.ndarray], columns: int | None = None, labels: Sequence[Any] | None = None
) -> Image.Image:
  """Tiles images into one picture, row by row; a notebook displays it as the last value of a cell.

  images: uint8 [N, H, W, C] or [H, W, C], or a list of these, which may differ in size; C is 1
    (grey), 3 (RGB), or one more for alpha, which is blended over white.
  columns: images in a row; by default all of them up to SHOWN_COLUMNS.
  labels: a text or a number per image, written below it.

  Raises:
    UserError: no images, another dtype or shape, or as many labels as there are not images.
  """
  batches = [checked_batch(batch) for batch in (images if isinstance(images, (list, tuple)) else [images])]
  each = [as_rgb(image) for batch in batches for image in batch]
  if not each:
    raise UserError("no images to show; expected uint8 [N, H, W, C] with N of at least 1")
  columns = min(len(each), SHOWN_COLUMNS) if columns is None else columns
  if columns < 1:
    raise UserError(f"columns={columns}; expected at least 1")
  if labels is not None and len(labels) != len(each):
    raise UserError(f"{len(labels)} labels of {len(each)} images; expected one per image")
  scale = max(map(sheet_scale, each))
  cells = [image.repeat(scale, 0).repeat(scale, 1) for image in each]
  height, width = np.max([cell.shape[:2] for cell in cells], axis=0)
  cells = np.stack([pad_image(cell, height, width) for cell in cells])
  if labels is not None:
    cells = np.concatenate([cells, np.stack([text_line(str(label), width) for label in labels])], 1)
  return Image.fromarray(tile(cells, columns))


def checked_batch(images: Any) -> np.ndarray:
  """Images uint8 [N, H, W, C], or [H, W, C], which is one -> [N, H, W, C].

  Raises:
    UserError: another dtype or shape.
  """
  images = np.asarray(images)
  if images.dtype != np.uint8:
    how = "; if they lie in [-1, 1], convert them by jldm.media.images.to_uint8(images)"
    raise UserError(
      f"images of {images.dtype}; expected uint8{how if images.dtype.kind == 'f' else ', 0 to 255'}"
    )
  batch = images[None] if images.ndim == 3 else images
  if batch.ndim != 4 or not 1 <= batch.shape[-1] <= 4 or not all(batch.shape[1:3]):
    raise UserError(
      f"images of shape {list(images.shape)}; expected [N, H, W, C] or [H, W, C] with C = 1 (grey), 3 or 4"
    )
  return batch


def pad_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """uint8 [h, w, C] -> [height, width, C], empty below it and to its right."""
  return np.pad(image, ((0, height - len(image)), (0, width - image.shape[1]), (0, 0)), constant_values=PAPER)


def widen_spaces(text: str) -> str:
  """Text with spaces that are seen: the font's own are two pixels wide, as those between letters are."""
  return text.replace(" ", "  ")


def text_line(text: str, width: int) -> np.ndarray:
  """One line of text, cut off where it is too long -> uint8 [TEXT_HEIGHT, width, 3]."""
  line = Image.new("RGB", (int(width), TEXT_HEIGHT), (PAPER,) * 3)
  ImageDraw.Draw(line).text((2, TEXT_HEIGHT / 2), widen_spaces(text), "black", anchor="lm")
  return np.asarray(line)


def samples_grid(images: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
  """The grid of `class_rows`, ten to a row; each row has the name of its class, if there are several."""
  shown = np.unique(labels)[:MOST_ROWS]
  titles = row_titles(shown, names)
  if len(shown) < 2 or not titles:
    return class_rows(images, labels, 10, sheet_scale(images))
  return titled_rows([images[labels == label][:10] for label in shown], titles)


def row_titles(labels: Sequence[int], names: Sequence[str]) -> list[str]:
  """The name of the class of each row, no two alike; [] unless every label has a name."""
  labels = [int(label) for label in labels]
  if not all(0 <= label < len(names) for label in labels):
    return []
  titles = [printable(names[label])[:MOST_LETTERS] for label in labels]
  if len(set(titles)) == len(titles):
    return titles
  numbers = labels if len(set(labels)) == len(labels) else range(len(labels))
  return [f"{number} {title}" for number, title in zip(numbers, titles, strict=True)]


def titled_rows(rows: list[np.ndarray], titles: list[str]) -> np.ndarray:
  """As `tile_rows`, enlarged, with a title on the left of each row if there are titles."""
  return sheet(dict(zip(titles, rows, strict=True))) if titles else tile_rows(rows, sheet_scale(rows[0]))


def as_rgb(images: np.ndarray) -> np.ndarray:
  """uint8 [..., C] of grey or RGB, with alpha or without -> RGB, over white."""
  if images.shape[-1] in (2, 4):
    share = images[..., -1:] / 255
    images = np.rint(share * images[..., :-1] + (1 - share) * 255).astype(np.uint8)
  return np.broadcast_to(images, (*images.shape[:-1], 3))


def sheet(rows: dict[str, np.ndarray]) -> np.ndarray:
  """Rows of images uint8 [n, H, W, C], all of one size, as in grid.png, each with its name on the left ->
  RGB.
  """
  each = [as_rgb(images) for images in rows.values()]
  height = each[0].shape[1]
  scale = sheet_scale(each[0])
  picture = tile_rows(each, scale)
  margin = Image.new("RGB", (8 + 7 * max(map(len, rows)), len(picture)), (PAPER,) * 3)
  canvas = ImageDraw.Draw(margin)
  for number, name in enumerate(rows):
    canvas.text(
      (4, 2 + number * (height * scale + 2) + height * scale / 2), widen_spaces(name), "black", anchor="lm"
    )
  return np.concatenate([np.asarray(margin), picture], 1)


def sheet_scale(images: np.ndarray) -> int:
  """How many times to enlarge images [..., H, W, C] so that the shorter side has about CELL pixels."""
  return max(1, round(CELL / min(images.shape[-3:-1])))


def tile(images: np.ndarray, columns: int, pad: int = 2, scale: int = 1) -> np.ndarray:
  """Images uint8 [N, H, W, C] -> one [rows (H scale + pad) + pad, columns (W scale + pad) + pad, C], row by
  row.
  """
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


def stack_pairs(
  originals: np.ndarray, reconstructions: np.ndarray, columns: int = 8, scale: int = 1
) -> np.ndarray:
  """A grid of both uint8 [N, H, W, C]: a row of originals, below it the row of their reconstructions, and so
  on.
  """
  starts = range(0, len(originals), columns)
  return tile_rows([some[i : i + columns] for i in starts for some in (originals, reconstructions)], scale)


def tile_rows(rows: list[np.ndarray], scale: int = 1) -> np.ndarray:
  """Rows of images uint8 [n, H, W, C], n differing -> one image, the ends of short rows empty."""
  columns = max(map(len, rows))
  empty = np.full((columns, *rows[0].shape[1:]), PAPER, np.uint8)
  return tile(
    np.concatenate([part for row in rows for part in (row, empty[len(row) :])]), columns, scale=scale
  )


def curves(
  lines: dict[str, tuple[Any, Any]], across: str, up: str, width: int = 640, height: int = 400
) -> np.ndarray:
  """A plot of lines {name: (x [N], y [N])} with linear axes called `across` and `up` -> uint8 [height,
  width, 3].
  """
  lines = {name: (np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in lines.items()}
  ticks = [even_ticks(np.concatenate([line[axis] for line in lines.values()])) for axis in (0, 1)]
  left, top, right, bottom = 70, 20, width - 20, height - 50
  along = lambda value, axis: (value - ticks[axis][0]) / (ticks[axis][-1] - ticks[axis][0])
  place = lambda x, y: (left + along(x, 0) * (right - left), bottom - along(y, 1) * (bottom - top))
  picture = Image.new("RGB", (width, height), "white")
  canvas = ImageDraw.Draw(picture)
  for x in ticks[0]:
    canvas.line([place(x, ticks[1][0]), place(x, ticks[1][-1])], "#e0e0e0")
    canvas.text((place(x, 0)[0], bottom + 6), f"{x:.4g}", "#404040", anchor="mt")
  for y in ticks[1]:
    canvas.line([place(ticks[0][0], y), place(ticks[0][-1], y)], "#e0e0e0")
    canvas.text((left - 6, place(0, y)[1]), f"{y:.4g}", "#404040", anchor="rm")
  canvas.text(((left + right) / 2, height - 8), across, "black", anchor="mb")
  canvas.text((8, 4), up, "black")
  for i, (name, (x, y)) in enumerate(lines.items()):
    color = COLORS[i % len(COLORS)]
    canvas.line([place(*point) for point in zip(x, y)], color, 2)
    canvas.text((right - 8, top + 6 + 16 * i), name, color, anchor="rt")
  return np.asarray(picture)


def even_ticks(values: np.ndarray) -> np.ndarray:
  """About six round numbers, evenly spaced, that span the values."""
  low, high = float(values.min()), float(values.max())
  # Values that differ by less than this share of their size are drawn as equal.
  rough = max(high - low, 1e-9, 1e-6 * abs(low), 1e-6 * abs(high)) / 5
  unit = 10.0 ** math.floor(math.log10(rough))
  step = unit * next(n for n in (1, 2, 5, 10) if n * unit >= rough)
  return step * np.arange(math.floor(low / step), max(math.ceil(high / step), math.floor(low / step) + 1) + 1)
