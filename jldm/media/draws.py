"""Files of a draw that are written batch by batch: an interrupted draw keeps what it drew.

A batch that is there, with the provenance of the same draw, need not be drawn again:

  files = PictureFolder(out, Captions(labels), provenance)
  for rows in batches:
    if not files.has(rows):
      files.write(rows, draw(rows))
  files.finish(batches)

No more than a batch is in memory.  A file whose draw is finished is never taken for a part of the next one.
"""

from collections.abc import Sequence
import json
from pathlib import Path
import shutil
from typing import IO, Any, NamedTuple, Protocol
import zipfile

import numpy as np

from jldm.core.files import remove_partials, replace_file
from jldm.media import images as pictures, open as opening, sheets
from jldm.media.parts import Parts, split_pictures

FIRST_OF_ONE_CLASS, FIRST_OF_CLASS = 100, 10  # pictures on grid.png


class Captions(NamedTuple):
  """What a draw was asked for.   labels: int [N]; names: of the classes; prompts: N texts, or none."""

  labels: np.ndarray
  names: Sequence[str] = ()
  prompts: Sequence[str] = ()

  def of(self, row: int) -> dict:
    """The label of a sample, and the name of its class and its prompt if there are any."""
    label = int(self.labels[row])
    name = {"class": self.names[label]} if 0 <= label < len(self.names) else {}
    prompt = {"prompt": self.prompts[row]} if self.prompts else {}
    return {"label": label} | name | prompt

  def arrays(self) -> dict[str, np.ndarray]:
    prompts = {"prompts": np.asarray(self.prompts)} if self.prompts else {}
    return {"labels": np.asarray(self.labels, np.int64)} | prompts


class DrawFiles(Protocol):
  """What a draw of N samples writes; `rows` are those of a batch."""

  def has(self, rows: range) -> bool:
    """Whether these samples of the same draw are there, and the draw is not finished."""

  def write(self, rows: range, data: Any) -> None:
    """Writes a batch."""

  def finish(self, batches: Sequence[range]) -> None:
    """Completes the files, once all batches are there."""


class PictureFolder:
  """00000.png ... and, once the draw is finished, grid.png."""

  def __init__(self, folder: Path, captions: Captions, provenance: dict):
    self.folder, self.captions, self.provenance = folder, captions, provenance
    self.grid = folder / "grid.png"
    self.finished = self.grid.exists()

  def path(self, row: int) -> Path:
    return self.folder / f"{row:05d}.png"

  def text(self, row: int) -> dict:
    """The provenance of a picture."""
    return self.provenance | self.captions.of(row) | {"index": row}

  def has(self, rows: range) -> bool:
    return not self.finished and all(is_of(self.path(row), self.text(row)) for row in rows)

  def write(self, rows: range, data: np.ndarray) -> None:
    """Writes images uint8 [B, H, W, C]."""
    self.grid.unlink(missing_ok=True)
    for row, image in zip(rows, data, strict=True):
      pictures.write_png(self.path(row), image, self.text(row))

  def finish(self, batches: Sequence[range]) -> None:
    labels = self.captions.labels
    rows = shown_rows(labels)
    images = np.stack([read_image(self.path(row)) for row in rows])
    grid = sheets.samples_grid(images, labels[rows], self.captions.names)
    pictures.write_png(self.grid, grid, self.provenance)
    remove_partials([self.grid, *(self.path(row) for row in range(len(labels)))])


class ArrayFile:
  """One .npz, made of a file per batch in a hidden folder beside it once the draw is finished."""

  def __init__(self, path: Path, captions: Captions, provenance: dict):
    self.path, self.captions, self.provenance = path, captions, provenance
    self.batches = path.with_name(f".{path.name}.batches")

  def batch(self, rows: range) -> Path:
    return self.batches / f"{rows.start:010d}-{rows.stop:010d}.npz"

  def text(self, rows: range) -> dict:
    """The provenance of the file of a batch, which knows what each sample was asked to be."""
    return self.provenance | {"samples": [self.captions.of(row) for row in rows]}

  def has(self, rows: range) -> bool:
    return is_of(self.batch(rows), self.text(rows))

  def write(self, rows: range, data: np.ndarray | Parts) -> None:
    """Writes arrays [B, ...] by name; one array alone is called images."""
    arrays = data if isinstance(data, dict) else {"images": data}
    pictures.write_arrays(self.batch(rows), arrays, self.text(rows))

  def finish(self, batches: Sequence[range]) -> None:
    paths = [self.batch(rows) for rows in batches]
    if array_names(paths[0]):
      text = {pictures.PROVENANCE: np.array(json.dumps(self.provenance))}
      write_joined(self.path, paths, text | self.captions.arrays())
    shutil.rmtree(self.batches)


class PartFolder:
  """Samples in parts: a PictureFolder per part of pictures; all other parts are arrays of parts.npz."""

  def __init__(self, folder: Path, parts: Sequence[str], captions: Captions, provenance: dict):
    self.others = ArrayFile(folder / "parts.npz", captions, provenance)
    self.shown = [PictureFolder(folder / name, captions, provenance | {"part": name}) for name in parts]

  def has(self, rows: range) -> bool:
    return self.others.has(rows)

  def write(self, rows: range, data: Parts) -> None:
    """Writes a dict of parts [B, ...]; the arrays come last, so that a batch which has them is whole."""
    shown, others = split_pictures(data)
    for part in self.shown:
      if part.folder.name in shown:
        part.write(rows, shown[part.folder.name])
    self.others.write(rows, others)

  def finish(self, batches: Sequence[range]) -> None:
    for part in self.shown:
      if part.path(0).exists():
        part.finish(batches)
    self.others.finish(batches)


def is_of(path: Path, provenance: dict) -> bool:
  """Whether a file of jldm has this provenance, so that the same draw wrote it."""
  return path.is_file() and pictures.provenance_or_none(path) == json.loads(json.dumps(provenance))


def read_image(path: Path) -> np.ndarray:
  """A picture of ours, uint8 [H, W, C]."""
  image = opening.decode_picture(path, np.asarray, formats=("PNG",))
  return image[..., None] if image.ndim == 2 else image


def shown_rows(labels: np.ndarray) -> np.ndarray:
  """The rows of labels [N] that grid.png shows."""
  classes = np.unique(labels)[: sheets.MOST_ROWS]
  most = FIRST_OF_CLASS if len(classes) > 1 else FIRST_OF_ONE_CLASS
  return np.sort(np.concatenate([np.flatnonzero(labels == each)[:most] for each in classes]))


def array_names(batch: Path) -> list[str]:
  """The names of the arrays in the file of a batch."""
  with np.load(batch, allow_pickle=False) as arrays:
    return [name for name in arrays.files if name != pictures.PROVENANCE]


def write_joined(path: Path, batches: Sequence[Path], further: dict[str, np.ndarray]) -> None:
  """Writes the arrays [B, ...] of all batches as one .npz of arrays [N, ...], with `further` ones.

  The arrays are copied batch by batch, as numpy itself would write them whole.
  """
  with replace_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, array in further.items():
      with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)
    for name in array_names(batches[0]):
      with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        write_rows(member, batches, name, len(further["labels"]))


def write_rows(member: IO[bytes], batches: Sequence[Path], name: str, count: int) -> None:
  """Writes an array of all batches [B, ...] as one .npy file of an array [count, ...]."""
  for index, batch in enumerate(batches):
    with np.load(batch, allow_pickle=False) as arrays:
      array = np.ascontiguousarray(arrays[name])
    if not index:
      header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
      np.lib.format.write_array_header_1_0(member, header | {"shape": (count, *array.shape[1:])})
    member.write(array.tobytes())
