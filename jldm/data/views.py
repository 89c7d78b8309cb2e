"""Views of a source: a selection of its examples, fewer labels, mirrored copies.

The fields `mirror`, `labelled` and `labelled_times` of `ImageData` and `Synthetic` change the
training split; held-out examples are never changed.
"""

import dataclasses
from typing import Any

import numpy as np

from jldm.core.errors import UserError
from jldm.data.index import epoch_permutation
from jldm.data.source import Batch, Source

NO_AUGMENTATION = {
  "balance": False,
  "mirror": False,
  "labelled": 1.0,
  "labelled_times": 1,
}  # fields that change nothing
LABEL_SEED = 0  # which labels are kept belongs to the data, not to a run


@dataclasses.dataclass(frozen=True)
class Mirrored:
  """Every example twice, 2 N in all: row i >= N is row i - N with its image flipped left to right."""

  source: Source

  def __len__(self) -> int:
    return 2 * len(self.source)

  def __getitem__(self, rows: np.ndarray) -> Batch:
    flip, rows = np.divmod(rows, len(self.source))
    batch = self.source[rows]
    image = batch["image"]
    return batch | {"image": np.where(flip[:, None, None, None], image[:, :, ::-1], image)}


@dataclasses.dataclass(frozen=True)
class Selected:
  """Example i is example rows[i] of a source, with label labels[i]: rows int [n], labels int32 [n]."""

  source: Source
  rows: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, rows: np.ndarray) -> Batch:
    return self.source[self.rows[rows]] | {"label": self.labels[rows]}


def keep_labels(labels: np.ndarray, share: float) -> np.ndarray:
  """Labels [N] with round(share * known) of them kept and the others set to -1.

  The classes take turns, each with its examples in a fixed shuffled order, until enough are kept.
  So the numbers kept of any two classes differ by at most one, unless a class has no more examples.
  The labels of a smaller share are a subset of those of a larger one.  No random state is used.
  """
  order = epoch_permutation(LABEL_SEED, 0, len(labels))
  order = order[labels[order] >= 0]
  by_class = np.argsort(labels[order], kind="stable")
  starts, counts = np.unique(labels[order][by_class], return_index=True, return_counts=True)[1:]
  turn = np.empty(len(order), np.int64)  # how many of its class come before it
  turn[by_class] = np.arange(len(order)) - np.repeat(starts, counts)
  kept = order[np.argsort(turn, kind="stable")[: round(share * len(order))]]
  fewer = np.full_like(labels, -1)
  fewer[kept] = labels[kept]
  return fewer


def repeat_labelled(rows: np.ndarray, labels: np.ndarray, times: int) -> np.ndarray:
  """Rows int [n], followed by `times` - 1 copies of those with a label; labels [N] are of all rows."""
  return np.concatenate([rows, np.tile(rows[labels[rows] >= 0], times - 1)])


def check_views(data: Any) -> None:
  """Raises a UserError for a share out of range, for changes to a split that is also held out, or for classes
  to be balanced that there are not.
  """
  if data.balance and not data.classes:
    raise UserError(
      "data.balance=True and data.classes=0, which reads no label; expected the number of classes, or "
      "data.balance=False"
    )
  if not 0 <= data.labelled <= 1:
    raise UserError(f"data.labelled={data.labelled}; expected a share of the labels from 0 to 1")
  if data.labelled_times < 1:
    raise UserError(f"data.labelled_times={data.labelled_times}; expected at least 1")
  if data.train == data.held_out and (data.mirror or data.labelled < 1):
    change = "data.mirror=True" if data.mirror else f"data.labelled={data.labelled}"
    raise UserError(
      f"{change} where data.train and data.held_out are both {data.train!r}, which would change held-out "
      "data; name two splits, such as 'train[:95%]' and 'train[95%:]'"
    )
