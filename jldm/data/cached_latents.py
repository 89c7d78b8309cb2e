"""A folder of arrays that is committed whole and checked when opened: what is encoded once and read many times.

  folder/<name>.npy     [count, ...]
  folder/index.json     {"count": ..., "arrays": {name: {"shape": ..., "dtype": ..., "blake2b": ...}}}

or, of buckets, such a folder each:

  folder/0/  folder/1/  ...
  folder/index.json     {"buckets": ...}
"""

from collections.abc import Callable, Iterable
import hashlib
import itertools
import json
from pathlib import Path
import re
import shutil
import tokenize

import numpy as np

from jldm.data.buckets import Buckets
from jldm.data.source import Arrays, Batch, Source
from jldm.data.staging import staged

NAME = re.compile(r"\w+")  # of an array: what an index says never leaves its folder
DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
           SyntaxError, tokenize.TokenError)  # the last two are what numpy says of some headers


def write_like(folder: str | Path, source: Source | Buckets, encode: Callable[[Source], Iterable[Batch]]) -> Source | Buckets:
  """Writes `encode` of a source, or of every bucket of it, in place of what `folder` held; returns it opened.

  encode(source) gives batches of arrays [b, ...], len(source) rows in all.
  """
  if not isinstance(source, Buckets):
    return write(folder, encode(source), len(source))
  folder = Path(folder)
  with staged(folder) as temporary:
    for number, bucket in enumerate(source.sources):
      write(temporary / str(number), encode(bucket), len(bucket))
    (temporary / "index.json").write_text(json.dumps({"buckets": len(source.sources)}))
    shutil.rmtree(folder, ignore_errors=True)
  return reopen(folder)


def write(folder: str | Path, batches: Iterable[Batch], count: int) -> Source:
  """Writes batches of arrays [b, ...], `count` rows in all, in place of what `folder` held; returns it opened.

  Raises: ValueError if the batches differ in names, shapes or dtypes, or do not add up to `count`.
  """
  folder = Path(folder)
  with staged(folder) as temporary:
    files, digests, done = {}, {}, 0
    for batch in batches:
      if not files:
        files = {name: create(temporary / f"{name}.npy", array, count) for name, array in batch.items()}
        digests = {name: hashlib.blake2b() for name in batch}
      rows = check(batch, files, count - done)
      for name, array in batch.items():
        files[name][done:done + rows] = array
        digests[name].update(np.ascontiguousarray(array))
      done += rows
    if done != count or not files:
      raise ValueError(f"{done} rows came, {count} were announced")
    for file in files.values():
      file.flush()
    arrays = {name: {"shape": list(file.shape), "dtype": file.dtype.str, "blake2b": digests[name].hexdigest()}
              for name, file in files.items()}
    (temporary / "index.json").write_text(json.dumps({"count": count, "arrays": arrays}, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
  return reopen(folder)


def reopen(folder: Path) -> Source | Buckets:
  """What was just written; OSError if it is not there."""
  source = open_cache(folder)
  if source is None:
    raise OSError(f"{folder} does not read back as it was written")
  return source


def create(path: Path, like: np.ndarray, count: int) -> np.memmap:
  """An empty file for `count` rows like those of `like` [b, ...]."""
  if like.dtype.kind not in "buif":
    raise ValueError(f"{path.name}: dtype {like.dtype} does not survive in a .npy file; use float32 or float16")
  return np.lib.format.open_memmap(path, mode="w+", dtype=like.dtype, shape=(count, *like.shape[1:]))


def check(batch: Batch, files: dict[str, np.memmap], room: int) -> int:
  """The number of rows of a batch that agrees with the files and fits into what room is left."""
  kinds = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
  if kinds != (expected := {name: (file.shape[1:], file.dtype) for name, file in files.items()}):
    raise ValueError(f"a batch of {kinds} after one of {expected}")
  lengths = {len(array) for array in batch.values()}
  if len(lengths) != 1 or max(lengths) > room:
    raise ValueError(f"a batch of {sorted(lengths)} rows where {room} are left")
  return lengths.pop()


def open_cache(folder: str | Path) -> Source | Buckets | None:
  """The arrays, mapped from the files; None if the folder is absent or damaged, so that it must be written anew."""
  folder = Path(folder)
  try:
    index = json.loads((folder / "index.json").read_text())
    if "buckets" in index:
      sources = tuple(itertools.takewhile(bool, (open_cache(folder / str(number)) for number in range(index["buckets"]))))
      return Buckets(sources) if len(sources) == index["buckets"] > 0 else None
    if not all(NAME.fullmatch(name) for name in index["arrays"]):
      return None
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in index["arrays"]}
    whole = all(matches(arrays[name], entry, index["count"]) for name, entry in index["arrays"].items())
  except DAMAGED:
    return None
  return Arrays(arrays) if arrays and whole else None


def matches(array: np.ndarray, entry: dict, count: int) -> bool:
  """Whether an array is the one that its index entry describes."""
  described = [count, *entry["shape"][1:]] == list(array.shape) == entry["shape"] and array.dtype.str == entry["dtype"]
  return described and hashlib.blake2b(array).hexdigest() == entry["blake2b"]
