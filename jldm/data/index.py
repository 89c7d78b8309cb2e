"""The one global order of examples, a pure function of the seed.

Position p of the endless stream is entry p % size of the permutation of epoch p // size.  Step n of
batch size B takes positions n B ... n B + B - 1, of which every process reads its rows.  So the
examples of a step depend neither on the number of processes nor on where a run was resumed.
"""

from collections.abc import Callable
import functools

import numpy as np


def random_order(seed: int, epoch: int, size: int) -> np.ndarray:
  """The order of one epoch: int64 [size], read-only.

  Sorting raw Philox words gives the same order in every numpy; `Generator.permutation` does not promise to.
  """
  key = np.array([seed % 2**64, epoch % 2**64], np.uint64)
  order = np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")
  order.flags.writeable = False
  return order


epoch_permutation = functools.lru_cache(maxsize=16)(random_order)  # two epochs of a handful of buckets


def example_rows(
  seed: int,
  positions: np.ndarray,
  size: int,
  order: Callable[[int, int, int], np.ndarray] = epoch_permutation,
) -> np.ndarray:
  """Rows of the data set, int64 like `positions`, in 0 ... size - 1."""
  epochs, places = np.divmod(np.asarray(positions, np.int64), size)
  rows = np.empty_like(places)
  for epoch in np.unique(epochs):
    in_epoch = epochs == epoch
    rows[in_epoch] = order(seed, int(epoch), size)[places[in_epoch]]
  return rows
