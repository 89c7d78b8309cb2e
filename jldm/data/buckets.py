"""Pictures of a few static shapes: every batch has one shape, so a program is compiled once per shape.

With batches of B, a cycle has m_k = ceil(n_k / B) batches of bucket k and M = m_1 + ... + m_K in all,
in a new random order for every cycle.  Step n is place n % M of cycle c = n // M.  If that place is
the j-th of bucket k in the cycle, the step reads batch c m_k + j of bucket k, as if the bucket were a
data set by itself with a separate seed.

So a step is a pure function of (seed, n), every bucket is read in epochs, and a single bucket is read
like the plain source.  Batches are never mixed, so a bucket with fewer than B pictures is seen more
often than its share: choose shapes that many pictures have.
"""

from collections.abc import Iterable
import dataclasses
import functools
import math
from typing import Any

import numpy as np

from jldm.core.errors import UserError
from jldm.core.specs import Spec, spec
from jldm.data.index import epoch_permutation
from jldm.data.source import Source

Shape = tuple[int, int]  # height, width
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd: its multiples differ for every k


@dataclasses.dataclass(frozen=True)
class Buckets:
  """One source per shape of images; none is empty."""

  sources: tuple[Source, ...]

  def __len__(self) -> int:
    return sum(len(source) for source in self.sources)

  def at(self, seed: int, batch_size: int, step: int) -> tuple[Source, int, int]:
    """(source, seed, step) of a step: the bucket that it reads, with the seed and step within the bucket."""
    batches = tuple(math.ceil(len(source) / batch_size) for source in self.sources)
    cycle, place = divmod(step, sum(batches))
    buckets, turns = cycle_order(bucket_seed(seed, -1), cycle, batches)
    bucket = int(buckets[place])
    return self.sources[bucket], bucket_seed(seed, bucket), cycle * batches[bucket] + int(turns[place])


@functools.lru_cache(maxsize=4)
def cycle_order(seed: int, cycle: int, batches: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """One cycle, int [M] each: the bucket of every place, and how often it came before in the cycle."""
  buckets = np.repeat(np.arange(len(batches)), batches)[epoch_permutation(seed, cycle, sum(batches))]
  turns = np.empty_like(buckets)
  for bucket, count in enumerate(batches):
    turns[buckets == bucket] = np.arange(count)
  return buckets, turns


def bucket_seed(seed: int, number: int) -> int:
  """The seed of a bucket; bucket 0 has `seed` itself."""
  return (seed + number * GOLDEN) % 2**64


def bucket_shapes(data: Any) -> tuple[Shape, ...]:
  """(data.height, data.width) and data.buckets; UserError unless they are different positive sizes."""
  every = ((data.height, data.width), *data.buckets)
  pairs = all(
    isinstance(shape, tuple) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
    for shape in every
  )
  if data.buckets and (not pairs or len(set(every)) < len(every)):
    raise UserError(
      f"data.buckets={data.buckets}; expected different (height, width) of whole numbers above 0, also "
      f"different from {data.height}x{data.width} of data.height and data.width, such as ((48, 80), (80, 48))"
    )
  return every


def picture_specs(data: Any, **more: tuple[Any, tuple[int, ...]]) -> tuple[Spec, ...]:
  """The specs of labelled pictures, one per shape of `data`; `more` are further arrays of an example."""
  return tuple(
    spec(image=(np.uint8, (*shape, data.channels)), label=(np.int32, ()), **more)
    for shape in bucket_shapes(data)
  )


def format_shapes(every: Iterable[Shape]) -> str:
  """Shapes as text: "64x64, 48x80"."""
  return ", ".join(f"{height}x{width}" for height, width in every)


def nearest_shape(size: Shape, every: Iterable[Shape]) -> Shape:
  """The shape with the nearest aspect ratio to `size`, on a log scale; among equals the nearest area."""
  difference = lambda a, b: abs(math.log(a / b))
  return min(
    every,
    key=lambda shape: (
      difference(size[0] / size[1], shape[0] / shape[1]),
      difference(size[0] * size[1], shape[0] * shape[1]),
    ),
  )
