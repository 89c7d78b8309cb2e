"""Whether pictures show what their captions say: figures by a scorer, which sees both.

A scorer takes images uint8 [N, H, W, C] and N captions, and gives arrays [N] by name: 1 for a picture that
does what the caption says, 0 for one that does not, NaN for one of which the figure says nothing.  One of
your own, in a file that `--import` names:

  @register_scorer
  def brightness(images, captions): return {"bright": …}
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jldm.config.experiment import Evaluation
from jldm.core.errors import UserError
from jldm.data.buckets import Buckets
from jldm.data.clothes import COLOURS, SHAPE, read_caption
from jldm.data.dataset import Dataset
from jldm.data.source import Batch
from jldm.evaluation.judge import Record, interval_record
from jldm.metrics import intervals
from jldm.metrics.extractors import fashion
from jldm.models.conditioners.text import caption_text

Scorer = Callable[[np.ndarray, Sequence[str]], dict[str, np.ndarray]]
CAPTION = "caption"  # of a batch
SCORERS: dict[str, Scorer] = {}  # by name; `register_scorer` adds to it


def register_scorer(scorer: Scorer) -> Scorer:
  """Makes a function known by its name, to `--scorer` too; usable as a decorator."""
  SCORERS[scorer.__name__] = scorer
  return scorer


def find_scorer(name: str) -> Scorer:
  """The scorer of a name.

  Raises:
    UserError: there is none.
  """
  if name not in SCORERS:
    raise UserError(f"scorer {name!r}; expected one of {', '.join(sorted(SCORERS))}, or --import its file")
  return SCORERS[name]


class Captioned(NamedTuple):
  """The captions that samples are given, with their own pictures uint8 [N, H, W, C] and labels int32 [N]."""

  captions: list[str]
  images: np.ndarray
  labels: np.ndarray
  scorer: Scorer | None
  record: Record


def open_captions(data: Dataset, evaluation: Evaluation, n: int) -> Captioned | None:
  """n captions of the split `evaluation.captions`, evenly spread; None if the data have none.

  Raises:
    UserError: a scorer that is unknown, or has nothing to read; no such split.
  """
  scorer = find_scorer(evaluation.scorer) if evaluation.scorer else None
  if CAPTION not in dict(data.specs[0]):
    if evaluation.scorer or evaluation.captions:
      raise UserError(
        f"evaluation.scorer={evaluation.scorer!r}, evaluation.captions={evaluation.captions!r}; expected "
        "neither: the data have no captions"
      )
    return None
  split = evaluation.captions or data.held_out
  source = data.without_augmentation().open(split)
  source = source.sources[0] if isinstance(source, Buckets) else source
  batch = source[np.arange(n) * len(source) // n]
  record = {"split": split, "scorer": evaluation.scorer}
  return Captioned(texts_of(batch), batch["image"], batch["label"], scorer, record)


def texts_of(batch: Batch) -> list[str]:
  return [caption_text(each) for each in batch[CAPTION]]


def judge_captions(
  scorer: Scorer, images: np.ndarray, real: np.ndarray, captions: Sequence[str], prefix: str = "caption"
) -> Record:
  """The figures of pictures by their captions, each with that of the captions' own pictures."""
  ours, theirs = (score(scorer, each, captions) for each in (images, real))
  return {
    f"{prefix}_{name}": value | ({"real": theirs[name]} if name in theirs else {})
    for name, value in ours.items()
  }


def score(scorer: Scorer, images: np.ndarray, captions: Sequence[str]) -> Record:
  """The mean of each figure with its interval, over the pictures that it says something of.

  Raises:
    UserError: a scorer's figure that is not one number per picture.
  """
  record = {}
  for name, values in scorer(images, captions).items():
    values = np.asarray(values, np.float64)
    if values.shape != (len(images),):
      raise UserError(f"figure {name!r} of a scorer has shape {values.shape}; expected ({len(images)},)")
    known = values[~np.isnan(values)]
    if len(known) > 1:
      record[name] = interval_record(intervals.mean_interval(known), len(known))
  return record


@register_scorer
def clothes(images: np.ndarray, captions: Sequence[str]) -> dict[str, np.ndarray]:
  """Of `jldm prepare clothes`: the shipped classifier and the mean hue of each half, against the captions.

  class, colour: the share of the two halves that are as asked.
  swapped: of pictures with both classes asked, in either order, whether they changed sides.
  all: whether both classes and both colours are as asked.

  Raises:
    UserError: pictures of another size, or captions that `jldm prepare clothes` does not write.
  """
  if images.shape[1:] != SHAPE:
    raise UserError(f"images {list(images.shape)} for the scorer clothes; expected {['N', *SHAPE]}")
  scenes = np.array([read_caption(caption) for caption in captions]).reshape(
    -1, 2, 2
  )  # [N, side, colour, thing]
  halves = np.split(images, 2, 2)
  classes = np.stack([fashion.classify(half.max(-1, keepdims=True)) for half in halves], 1)  # [N, side]
  colours = np.stack([nearest_colour(half) for half in halves], 1)  # [N, side]
  right, tinted = classes == scenes[..., 1], colours == scenes[..., 0]
  exchanged = (classes[:, ::-1] == scenes[..., 1]).all(1)
  different = scenes[:, 0, 1] != scenes[:, 1, 1]
  both = different & (right.all(1) | exchanged)
  return {
    "class": right.mean(1),
    "colour": tinted.mean(1),
    "swapped": np.where(both, exchanged, np.nan),
    "all": np.float64((right & tinted).all(1)),
  }


def nearest_colour(images: np.ndarray) -> np.ndarray:
  """The colour of jldm.data.clothes whose hue is nearest to that of a mean of uint8 [N, H, W, 3], int [N]."""
  axes = np.exp(2j * np.pi * np.arange(3) / 3)  # of red, green and blue on the wheel of hues
  found = np.angle(images.reshape(len(images), -1, 3).mean(1) @ axes)  # [N]
  named = np.angle(np.array(list(COLOURS.values())) @ axes)  # [colours]
  return np.abs(np.exp(1j * found[:, None]) - np.exp(1j * named)).argmin(1)
