"""Sources of examples: random access by number, a batch at a time."""

from collections.abc import Callable
import dataclasses
from typing import Protocol

import numpy as np

Batch = dict[str, np.ndarray]


class Source(Protocol):
  """Random access to examples 0 ... len - 1."""

  def __len__(self) -> int: ...

  def __getitem__(self, rows: np.ndarray) -> Batch:
    """rows int [B] -> arrays [B, ...], as the data set's spec has them: image uint8 [B, H, W, C],
    label int32 [B], -1 unknown.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Examples in arrays [N, ...], in memory or memory-mapped: a batch is one gather."""

  arrays: Batch

  def __len__(self) -> int:
    return len(next(iter(self.arrays.values())))

  def __getitem__(self, rows: np.ndarray) -> Batch:
    return {name: np.asarray(array[rows]) for name, array in self.arrays.items()}


@dataclasses.dataclass(frozen=True)
class SourceSlice:
  """`count` examples of a source, starting at `start`."""

  source: Source
  start: int
  count: int

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, rows: np.ndarray) -> Batch:
    return self.source[self.start + rows]


@dataclasses.dataclass(frozen=True)
class Joined:
  """Sources of the same kind, concatenated; all but the last have the same length."""

  sources: tuple[Source, ...]

  def __len__(self) -> int:
    return sum(len(source) for source in self.sources)

  def __getitem__(self, rows: np.ndarray) -> Batch:
    numbers, places = np.divmod(rows, len(self.sources[0]))
    batch: Batch = {}
    for number in np.unique(numbers):
      selected = numbers == number
      for name, array in self.sources[number][places[selected]].items():
        batch.setdefault(name, np.empty((len(rows), *array.shape[1:]), array.dtype))[selected] = array
    return batch


@dataclasses.dataclass(frozen=True)
class Extended:
  """The examples of a source with further arrays, extend(batch), computed when they are read."""

  source: Source
  extend: Callable[[Batch], Batch]

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, rows: np.ndarray) -> Batch:
    batch = self.source[rows]
    return batch | self.extend(batch)


@dataclasses.dataclass(frozen=True)
class Zipped:
  """Sources of the same examples whose arrays have different names: an example has all of them."""

  sources: tuple[Source, ...]

  def __len__(self) -> int:
    return len(self.sources[0])

  def __getitem__(self, rows: np.ndarray) -> Batch:
    return {name: array for source in self.sources for name, array in source[rows].items()}
