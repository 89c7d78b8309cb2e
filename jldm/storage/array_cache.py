"""Arrays that are written once and read many times, in parts that are written whole and verified when opened.

  folder/0-0/  folder/0-1/  ...   the parts of bucket 0, PART rows each, then the rest; 1-0 starts bucket 1
  folder/index.json               {"parts": [number of parts per bucket], "buckets": are there buckets}

A part is a folder:

  <name>.npy     [count, ...]
  index.json     {"count": ..., "arrays": {name: {"shape": ..., "dtype": ..., "blake2b": ...}}}

A good part is not written again, so an interrupted run resumes, and several processes share the work.
"""

import collections
from collections.abc import Callable, Iterable
import hashlib
import itertools
import json
from pathlib import Path
import re
import shutil
import tokenize
from typing import Any
import warnings

import numpy as np

from jldm.core.files import replace_file, replace_folder
from jldm.data.buckets import Buckets
from jldm.data.source import Arrays, Batch, Joined, Source, SourceSlice

PART = 8192  # rows of a part
NAME = re.compile(r"\w+")  # of an array: no name in an index leads out of its folder
DAMAGED = (  # what reading a damaged part raises; numpy raises some of them for some headers
  OSError,
  EOFError,
  ValueError,
  KeyError,
  TypeError,
  AttributeError,
  OverflowError,
  RecursionError,
  Warning,
  SyntaxError,
  tokenize.TokenError,
)


def part_names(source: Source | Buckets) -> list[tuple[str, SourceSlice]]:
  """(name, slice) of every part of a source, bucket by bucket."""
  every = source.sources if isinstance(source, Buckets) else (source,)
  return [
    (f"{number}-{start // PART}", SourceSlice(each, start, min(PART, len(each) - start)))
    for number, each in enumerate(every)
    for start in range(0, len(each), PART)
  ]


def write_cache(
  folder: str | Path,
  source: Source | Buckets,
  encode: Callable[[SourceSlice], Iterable[Batch]],
  process_index: int = 0,
  process_count: int = 1,
  barrier: Callable[[], None] = lambda: None,
) -> Source | Buckets:
  """Writes the parts of an encoded source that `folder` lacks, and opens the cache.

  encode(part) gives batches of arrays [b, ...], len(part) rows in all.  Each of P processes writes
  every P-th part; barrier() returns when all processes have called it.

  Raises:
    ValueError, OSError: as `write_part`.
  """
  folder, every = Path(folder), part_names(source)
  for name, part in every[process_index::process_count]:
    written = open_part(folder / name)
    if written is None or len(written) != len(part):
      write_part(folder / name, encode(part), len(part))
  barrier()
  if process_index == 0:
    commit_cache(folder, [name for name, _ in every], isinstance(source, Buckets))
  barrier()
  return require_readable(folder, open_cache(folder))


def commit_cache(folder: Path, names: list[str], buckets: bool) -> None:
  """Marks a folder as complete with these parts, and removes everything else from it."""
  for path in set(folder.iterdir()) - {folder / name for name in names}:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  counts = collections.Counter(name.split("-")[0] for name in names)
  with replace_file(folder / "index.json", partial="index.json.partial") as file:
    file.write(json.dumps({"parts": list(counts.values()), "buckets": buckets}).encode())


def write_part(folder: str | Path, batches: Iterable[Batch], count: int) -> Source:
  """Writes batches of arrays [b, ...], `count` rows in all, as a part that replaces `folder`; opens it.

  Raises:
    ValueError: the batches differ in names, shapes or dtypes, or do not add up to `count`.
    OSError: what was written cannot be read.
  """
  folder = Path(folder)
  with replace_folder(folder) as temporary:
    files, digests, done = {}, {}, 0
    for batch in batches:
      if not files:
        files = {
          name: create_array_file(temporary / f"{name}.npy", array, count) for name, array in batch.items()
        }
        digests = {name: hashlib.blake2b() for name in batch}
      rows = check_batch(batch, files, count - done)
      for name, array in batch.items():
        files[name][done : done + rows] = array
        digests[name].update(np.ascontiguousarray(array))
      done += rows
    if done != count or not files:
      raise ValueError(f"{done} rows came, {count} were expected")
    for file in files.values():
      file.flush()
    arrays = {
      name: {"shape": list(file.shape), "dtype": file.dtype.str, "blake2b": digests[name].hexdigest()}
      for name, file in files.items()
    }
    (temporary / "index.json").write_text(json.dumps({"count": count, "arrays": arrays}, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
  return require_readable(folder, open_part(folder))


def require_readable(folder: Path, opened: Any) -> Any:
  """What was opened after writing; OSError if it is None."""
  if opened is None:
    raise OSError(f"{folder} cannot be read after it was written; check the disk")
  return opened


def create_array_file(path: Path, like: np.ndarray, count: int) -> np.memmap:
  """An empty file for `count` rows like those of `like` [b, ...]."""
  if like.dtype.kind not in "buif":
    raise ValueError(
      f"{path.name}: dtype {like.dtype} does not survive in a .npy file; use float32 or float16"
    )
  return np.lib.format.open_memmap(path, mode="w+", dtype=like.dtype, shape=(count, *like.shape[1:]))


def check_batch(batch: Batch, files: dict[str, np.memmap], room: int) -> int:
  """The number of rows of a batch; ValueError unless it matches the files and fits into the rows left."""
  kinds = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
  if kinds != (expected := {name: (file.shape[1:], file.dtype) for name, file in files.items()}):
    raise ValueError(f"a batch of {kinds} after one of {expected}")
  lengths = {len(array) for array in batch.values()}
  if len(lengths) != 1 or max(lengths) > room:
    raise ValueError(f"a batch of {sorted(lengths)} rows where {room} are left")
  return lengths.pop()


def open_cache(folder: str | Path) -> Source | Buckets | None:
  """The arrays, memory-mapped; None if the folder is absent, incomplete or damaged."""
  folder = Path(folder)
  try:
    index = json.loads((folder / "index.json").read_text())
    each = (
      tuple(itertools.takewhile(bool, (open_part(folder / f"{bucket}-{part}") for part in range(count))))
      for bucket, count in enumerate(index["parts"])
    )
    sources = tuple(Joined(parts) for parts, count in zip(each, index["parts"]) if len(parts) == count > 0)
    if not sources or len(sources) < len(index["parts"]):
      return None
    return Buckets(sources) if index["buckets"] else sources[0]
  except DAMAGED:
    return None


def open_part(folder: str | Path) -> Source | None:
  """One part, memory-mapped; None if it is absent or damaged."""
  folder = Path(folder)
  try:
    index = json.loads((folder / "index.json").read_text())
    if not all(NAME.fullmatch(name) for name in index["arrays"]):
      return None
    with warnings.catch_warnings():
      warnings.simplefilter("error")  # numpy takes odd headers, with a warning; none of ours is odd
      arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in index["arrays"]
      }
    whole = all(matches_entry(arrays[name], entry, index["count"]) for name, entry in index["arrays"].items())
  except DAMAGED:
    return None
  return Arrays(arrays) if arrays and whole else None


def matches_entry(array: np.ndarray, entry: dict, count: int) -> bool:
  """Whether an array has the shape, dtype and hash of its index entry."""
  shape, dtype = entry["shape"], entry["dtype"]
  if not [count, *shape[1:]] == list(array.shape) == shape or array.dtype.str != dtype:
    return False
  return hashlib.blake2b(array).hexdigest() == entry["blake2b"]
