"""Picture files in folders: one sub-folder per class, perhaps within one per split."""

from collections.abc import Iterable
import functools
import os
from pathlib import Path
import re
from typing import NamedTuple

from jldm.core.errors import UserError
from jldm.data import transforms
from jldm.data.captions import METADATA, Found, find_captions
from jldm.data.contents import Contents, Example, SourceOptions, require_source
from jldm.media.open import extensions

TRAINING = ("train", "training")  # names of folders that are splits, if all that lie next to them are
HELD_OUT = ("test", "testing", "val", "valid", "validation", "dev", "eval", "holdout", "held_out")


class Group(NamedTuple):
  """The pictures of one split: flat, or by class."""

  flat: list[Path]
  by_class: dict[str, list[Path]]


class LeftOut:
  """The files and folders that are not read, by reason; and the texts, which may turn out to be captions."""

  def __init__(self, root: Path):
    self.root, self.reasons, self.texts = root, {}, []

  def add(self, reason: str, path: Path) -> None:
    self.reasons.setdefault(reason, []).append(os.path.relpath(path, self.root))


def folder_contents(source: SourceOptions) -> Contents:
  """Picture files: one sub-folder per class in natural order, or all in one folder, unlabelled.

  Folders "train" and "val" or "test" are the splits, if nothing else lies next to them.

  Raises:
    UserError: no pictures, or pictures next to sub-folders; what `find_captions` raises.
  """
  root = require_source(
    source.path, "folder", "a folder of pictures, or of one sub-folder per class", Path.is_dir
  )
  left_out = LeftOut(root)
  folders = split_folders(root, source.held_out)
  groups = {split: read_group(folder, left_out) for split, folder in folders.items()}
  classes = natural_order({name for group in groups.values() for name in group.by_class})
  if classes and any(group.flat for group in groups.values()):
    raise UserError(
      f"'{root}' has splits with classes ({', '.join(classes[:3])}) and without; expected all of one form"
    )
  unknown = [name for name in classes if name not in groups["train"].by_class]
  if unknown:
    raise UserError(
      f"class {unknown[0]!r} of the held-out pictures is none of those to train on "
      f"({', '.join(natural_order(groups['train'].by_class))}); remove it or add it to them"
    )
  labels = {name: label for label, name in enumerate(classes)}
  rows = {
    split: [(path, -1) for path in group.flat]
    + [(path, labels[name]) for name in natural_order(group.by_class) for path in group.by_class[name]]
    for split, group in groups.items()
  }
  found = read_captions(source, root, folders, left_out, [path for each in rows.values() for path, _ in each])
  splits = {
    split: [
      make_example(path, label, source.max_pixels, found.captions.get(path, "")) for path, label in each
    ]
    for split, each in rows.items()
  }
  notes = (*describe_reading(root, folders, classes), *found.notes)
  return Contents(splits, classes, left_out.reasons, notes)


def read_captions(
  source: SourceOptions, root: Path, folders: dict[str, Path], left_out: LeftOut, pictures: list[Path]
) -> Found:
  """The captions of pictures; the texts that have none are left out."""
  above = [root / name for name in METADATA if folders["train"] != root and (root / name).is_file()]
  found = find_captions(source.captions, above + left_out.texts, pictures, source.max_bytes)
  for path in left_out.texts:
    if path not in found.files:
      left_out.add(unread_extension(path.suffix), path)
  return found


def make_example(path: Path, label: int, max_pixels: int, caption: str) -> Example:
  def load(levels: transforms.Levels | None = None):
    form = functools.partial(transforms.to_8_bit, levels=levels)
    return transforms.read_picture(path, form, max_pixels)

  measure = functools.partial(transforms.read_picture, path, transforms.measure_picture, max_pixels)
  return Example(load, label, str(path), measure, caption=caption)


def split_folders(root: Path, held_out: Path | None) -> dict[str, Path]:
  """The folder of each split; the first is "train"."""
  names = visible_folders(root)
  training = [name for name in names if name.lower() in TRAINING]
  others = [name for name in names if name.lower() in HELD_OUT]
  if len(training) != 1 or len(names) > 1 + len(others):
    if held_out is not None and not held_out.is_dir():
      raise UserError(f"held_out='{held_out}' is not a folder; give one of pictures with --held-out")
    return {"train": root} | ({"test": held_out} if held_out else {})
  if held_out is not None:
    raise UserError(
      f"held_out='{held_out}' with '{root}', which has a folder {training[0]!r}; "
      f"expected --source '{root / training[0]}' with --held-out, or no --held-out"
    )
  split_names = ["test"] if len(others) == 1 else [name.lower() for name in others]
  return {"train": root / training[0]} | {
    split: root / name for split, name in zip(split_names, others, strict=True)
  }


def describe_reading(root: Path, folders: dict[str, Path], classes: list[str]) -> Iterable[str]:
  """Lines about splits that were found, and about a single class that holds folders."""
  if len(folders) > 1 or folders["train"] != root:
    yield "splits: " + ", ".join(f"{split} from '{folder}'" for split, folder in folders.items())
  if "test" in folders:
    yield "to train on all of one and evaluate on the other: --set data.train=train --set data.held_out=test"
  if len(classes) == 1:
    inner = visible_folders(folders["train"] / classes[0])
    yield f"one class alone, {classes[0]!r}" + (
      f", of all folders within it ({', '.join(inner[:3])}); to have these as classes: "
      f"--source '{folders['train'] / classes[0]}'"
      if inner
      else ""
    )


def visible_folders(root: Path) -> list[str]:
  """The names of the folders in `root`, linked ones too, in natural order; UserError if it cannot be read."""
  try:
    return natural_order(
      entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")
    )
  except OSError as error:
    raise UserError(f"'{root}' cannot be read ({error.strerror}); change its permissions") from error


def read_group(root: Path, left_out: LeftOut) -> Group:
  """The pictures in `root`, or in each of its sub-folders.

  Raises:
    UserError: none, none in a sub-folder, or some next to sub-folders.
  """
  classes = visible_folders(root)
  flat = find_pictures(root, left_out, set(), within=False)
  if flat and classes:
    raise UserError(
      f"'{root}' has pictures ('{flat[0].name}') next to sub-folders ('{classes[0]}'); "
      "expected pictures alone (unlabelled) or sub-folders alone (one per class); move one of them away"
    )
  by_class = {name: find_pictures(root / name, left_out, set()) for name in classes}
  for name, pictures in by_class.items():
    if not pictures:
      raise UserError(f"'{root / name}' holds no pictures ({', '.join(extensions())}); fill or remove it")
  if not flat and not classes:
    raise UserError(
      f"'{root}' holds no pictures; expected {', '.join(extensions())}, in it or in sub-folders"
    )
  return Group(flat, by_class)


def find_pictures(folder: Path, left_out: LeftOut, seen: set, within: bool = True) -> list[Path]:
  """The picture files in a folder, and `within` its sub-folders, linked ones too; sorted by name.

  seen: the folders that were read before, so that links in a circle end.
  """
  try:
    status = os.stat(folder)
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
  except OSError as error:
    left_out.add(f"folder that cannot be read ({error.strerror})", folder)
    return []
  if (status.st_dev, status.st_ino) in seen:
    left_out.add("folder linked to more than once", folder)
    return []
  seen.add((status.st_dev, status.st_ino))
  pictures = []
  for entry in entries:
    path = folder / entry.name
    if entry.is_dir() and (not within or entry.name.startswith(".")):
      if entry.name.startswith("."):
        left_out.add("hidden", path)
    elif entry.is_dir():
      pictures += find_pictures(path, left_out, seen)
    elif is_text(entry):
      left_out.texts.append(path)
    elif reason := reason_to_leave_out(entry):
      left_out.add(reason, path)
    else:
      pictures.append(path)
  return pictures


def reason_to_leave_out(entry: os.DirEntry) -> str:
  """Why a file is not read; empty if it is."""
  suffix = Path(entry.name).suffix.lower()
  if entry.name.startswith("."):
    return "hidden"
  if suffix[1:] not in extensions():
    return unread_extension(suffix) if suffix else "without an extension"
  return "" if entry.is_file() else "no file (a link that leads nowhere, a FIFO or a device)"


def unread_extension(suffix: str) -> str:
  return f"with the extension {suffix.lower()}, which is not read"


def is_text(entry: os.DirEntry) -> bool:
  """Whether a file may have captions."""
  name = entry.name
  of_captions = name in METADATA or name.lower().endswith(".txt")
  return of_captions and not name.startswith(".") and entry.is_file()


def natural_order(names: Iterable[str]) -> list[str]:
  """Names in order, the numbers in them by value: "2" before "10"."""

  def key(name: str) -> tuple:
    # text and digits take turns, text first
    parts = re.split(r"([0-9]+)", name)
    return tuple((int(part), len(part)) if number % 2 else part for number, part in enumerate(parts))

  return sorted(names, key=key)
