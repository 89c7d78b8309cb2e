"""What training reads from: examples by number, a batch at a time."""

import dataclasses
from typing import Protocol

import numpy as np

Batch = dict[str, np.ndarray]


class Source(Protocol):
  """Random access to examples 0 ... len - 1."""

  def __len__(self) -> int: ...

  def __getitem__(self, rows: np.ndarray) -> Batch:
    """rows int [B] -> arrays [B, ...]; for images: image uint8 [B, H, W, C] and label int32 [B], -1 unknown."""
    ...


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Examples that lie in arrays [N, ...], in memory or mapped from a file: a batch is one gather."""
  arrays: Batch

  def __len__(self) -> int:
    return len(next(iter(self.arrays.values())))

  def __getitem__(self, rows: np.ndarray) -> Batch:
    return {name: np.asarray(array[rows]) for name, array in self.arrays.items()}
