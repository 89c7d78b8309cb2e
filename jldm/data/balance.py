"""Classes drawn equally often in training.

Positions of the endless stream are dealt out in rounds of K, the number of classes: a round has every
class once, in an order of its own.  Round r takes the example at position r of the class's own stream of
epochs.  So a batch is a pure function of (seed, step), as without balance, and the numbers drawn of two
classes never differ by more than one.  Examples without a label are one more class.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from jldm.core.errors import UserError
from jldm.data.buckets import Buckets, bucket_seed
from jldm.data.index import example_rows, random_order
from jldm.data.source import Arrays, Batch, Source
from jldm.data.views import Mirrored, Selected

CHUNK = 1024  # examples whose labels are read at once
MOST_CLASSES = 40  # of a line


@dataclasses.dataclass(frozen=True)
class Balanced:
  """A source that is read in rounds; members: the rows int [n] of each class."""

  source: Source
  members: tuple[np.ndarray, ...]

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, rows: np.ndarray) -> Batch:
    return self.source[rows]

  @functools.cached_property
  def order(self) -> Any:
    """`random_order`, which remembers two epochs of every class."""
    return functools.lru_cache(maxsize=2 * len(self.members))(random_order)

  def rows_at(self, seed: int, positions: np.ndarray) -> np.ndarray:
    """Rows of the source, int64 like `positions`."""
    rounds, places = np.divmod(np.asarray(positions, np.int64), len(self.members))
    kind, rows = np.empty_like(places), np.empty_like(places)
    for number in np.unique(rounds):
      now = rounds == number
      kind[now] = random_order(bucket_seed(seed, -1), int(number), len(self.members))[places[now]]
    for label in np.unique(kind):
      now, members = kind == label, self.members[label]
      rows[now] = members[example_rows(bucket_seed(seed, int(label)), rounds[now], len(members), self.order)]
    return rows


def balance(source: Any, train_set: Any) -> Any:
  """`source`, whose examples are those of `train_set`, with its classes read equally often."""
  if isinstance(train_set, Buckets):
    return Buckets(tuple(balance(*pair) for pair in zip(source.sources, train_set.sources, strict=True)))
  labels = read_labels(train_set)
  starts = np.unique(np.sort(labels), return_index=True)[1]
  return Balanced(source, tuple(np.split(np.argsort(labels, kind="stable"), starts[1:])))


def read_labels(source: Any) -> np.ndarray:
  """The labels int [N] of all examples, -1 unknown; of pictures on a disk without decoding them.

  Raises:
    UserError: examples that have none.
  """
  if isinstance(source, Buckets):
    return np.concatenate([read_labels(each) for each in source.sources])
  if isinstance(source, Mirrored):
    return np.tile(read_labels(source.source), 2)
  if isinstance(source, Selected):
    return source.labels
  if isinstance(source, Arrays):
    return np.asarray(check_labels(source.arrays)["label"])
  chunks = np.array_split(np.arange(len(source)), max(len(source) // CHUNK, 1))
  return np.concatenate([check_labels(source[rows])["label"] for rows in chunks])


def check_labels(batch: Batch) -> Batch:
  """`batch` itself; UserError if it has no labels."""
  if "label" not in batch:
    raise UserError(
      f"data.balance=True, and the data has {', '.join(sorted(batch))}; expected a label among them, or "
      "data.balance=False"
    )
  return batch


def check_balance(data: Any, train_set: Any) -> None:
  """Raises a UserError if classes are to be balanced where no example has a label."""
  if data.balance and read_labels(train_set).max() < 0:
    raise UserError("data.balance=True, and no training example has a label; set it to False")


def describe_classes(labels: np.ndarray, names: Sequence[str]) -> str:
  """The number of examples of each class, in one line; the classes are called by `names` if there are any."""
  known, counts = np.unique(labels, return_counts=True)
  called = lambda label: "no label" if label < 0 else names[label] if label < len(names) else str(label)
  listed = [f"{called(label)} {count:,}" for label, count in zip(known, counts)]
  more = [f"{len(listed) - MOST_CLASSES} more"] if len(listed) > MOST_CLASSES else []
  return ", ".join(listed[:MOST_CLASSES] + more)
