"""The batches of a range of steps, read ahead in threads; every batch is of one bucket."""

from collections.abc import Iterator
import functools

import grain
import numpy as np

from jldm.core.shapes import batch_rows
from jldm.data.balance import Balanced
from jldm.data.buckets import Buckets
from jldm.data.index import example_rows
from jldm.data.source import Batch, Source


def read_batch(
  source: Source | Buckets, seed: int, batch_size: int, step: int, rows: np.ndarray | None = None
) -> Batch:
  """The batch of one step, or some of its rows int [b]: the source's arrays [b, ...], and two more.

  row int32 [b] is the place in the batch, 0 ... batch_size - 1; stratum float32 [b] is row / batch_size.
  """
  if isinstance(source, Buckets):
    source, seed, step = source.at(seed, batch_size, step)
  row = np.arange(batch_size) if rows is None else rows
  place = {"row": row.astype(np.int32), "stratum": (row / batch_size).astype(np.float32)}
  positions = step * batch_size + row
  balanced = isinstance(source, Balanced)
  rows = source.rows_at(seed, positions) if balanced else example_rows(seed, positions, len(source))
  return source[rows] | place


def batches(
  source: Source | Buckets,
  seed: int,
  batch_size: int,
  start: int,
  stop: int,
  rows: np.ndarray | None = None,
  threads: int = 2,
) -> Iterator[Batch]:
  """The batches of steps start ... stop - 1, or some rows of them.

  Each depends on its step alone, so a resumed run reads the same ones.  The elements of the pipeline
  are whole batches: one gather per batch is several times faster than one per example.
  """
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  steps = grain.MapDataset.range(start, stop)
  return iter(
    steps.map(functools.partial(read_batch, source, seed, batch_size, rows=rows)).to_iter_dataset(options)
  )


def in_order(source: Source | Buckets, batch_size: int, pad: bool = True) -> Iterator[tuple[Batch, int]]:
  """Every example once, in order, bucket after bucket, as (arrays [batch_size, ...], number of real rows).

  The last batch is padded with its last example, so that all have one shape; `pad=False` leaves it short.
  """
  if isinstance(source, Buckets):
    for bucket in source.sources:
      yield from in_order(bucket, batch_size, pad)
    return
  for start in range(0, len(source), batch_size):
    count = min(batch_size, len(source) - start)
    yield source[batch_rows(start, batch_size if pad else count, len(source))], count
