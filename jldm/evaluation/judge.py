"""Metrics of samples compared with real pictures, and of reconstructions compared with their originals.

A value of N samples alone says little: Fréchet distances are too large for few pictures, and coverage is
small
for fewer samples than real pictures.  So each value of samples stands next to the value of as many real
pictures, against the same reference.  Sampling and networks are arguments; results are JSON data.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jldm.core.errors import UserError
from jldm.data.index import epoch_permutation
from jldm.data.source import Source
from jldm.distributed import sharding
from jldm.evaluation.features import Features
from jldm.media.images import to_uint8
from jldm.metrics import frechet, intervals, mmd
from jldm.metrics.image import psnr, ssim
from jldm.metrics.inception_score import inception_score
from jldm.metrics.intervals import ConfidenceInterval
from jldm.metrics.manifold import manifold, radii

Record = dict[str, Any]  # JSON
Scores = dict[str, ConfidenceInterval]  # by name of the figure
ORDER_SEED = 0  # fixed: every run compares with the same real pictures
MOST_PAIRS = 10_000  # real pictures that a kernel compares each sample with
GROUPS = 10  # of the jackknife
LEAST_ACCURACY = 0.5  # of a classifier on real pictures, before it may judge samples
FEWEST = 10  # pictures of a class that is judged alone


class Split(NamedTuple):
  """Some pictures of a source."""

  source: Source
  rows: np.ndarray


class Sets(NamedTuple):
  """The real pictures of an evaluation.

  reference: training pictures.   real: as many pictures as samples, none of them in the reference.
  held_out: pictures that were not trained on.
  """

  reference: Split
  real: Split
  held_out: Split


def choose_real_sets(train: Source, held_out: Source, n: int, most: int) -> Sets:
  """Chooses the real pictures for n samples, the same at every call; at most `most` for the reference.

  If fewer than n are held out, n training pictures are taken from the reference instead.

  Raises:
    UserError: no training picture is left for the reference.
  """
  train_order, held_out_order = (
    epoch_permutation(ORDER_SEED, 0, len(source)) for source in (train, held_out)
  )
  if len(held_out_order) >= n:
    real = Split(held_out, held_out_order[:n])
    return Sets(Split(train, train_order[:most]), real, real)
  if len(train_order) <= n:
    raise UserError(
      f"n={n}, but {len(held_out_order)} pictures are held out and {len(train_order)} trained on; "
      f"expected at most {max(len(held_out_order), len(train_order) - 1)}"
    )
  reference, real = train_order[n : n + most], train_order[:n]
  return Sets(Split(train, reference), Split(train, real), Split(held_out, held_out_order))


def proportional_labels(labels: np.ndarray, n: int) -> np.ndarray:
  """n labels int32, ascending, in the proportions of `labels` [N]; all -1 if none is known."""
  names, counts = np.unique(labels[labels >= 0], return_counts=True)
  if not len(names):
    return np.full(n, -1, np.int32)
  exact = n * counts / counts.sum()
  shares = np.floor(exact).astype(int)
  shares[np.argsort(shares - exact, kind="stable")[: n - shares.sum()]] += 1
  return np.repeat(names, shares).astype(np.int32)


def class_agreement(pictures: Features) -> np.ndarray:
  """Whether the classifier's class of each picture is its label, bool [N]."""
  return pictures.logits.argmax(1) == pictures.labels


def score_frechet(reference: Features, pictures: Features) -> Scores:
  """The Fréchet distance of features."""
  return {"frechet": frechet.frechet_interval(reference.features, pictures.features)}


def score_kid(reference: Features, pictures: Features) -> Scores:
  """The kernel distance."""
  return {"kid": mmd.kernel_distance(reference.features[:MOST_PAIRS], pictures.features)}


def score_cmmd(reference: Features, pictures: Features) -> Scores:
  """CMMD, which is made for CLIP's features."""
  return {"cmmd": mmd.cmmd(reference.features[:MOST_PAIRS], pictures.features)}


def score_manifold(reference: Features, pictures: Features) -> Scores:
  """Precision, recall, density and coverage, against as many reference pictures as there are samples."""
  values = intervals.jackknife(
    manifold, reference.features[: len(pictures)], pictures.features, groups=GROUPS
  )
  largest = {"density": np.inf}
  return {
    name: ConfidenceInterval(each.value, max(each.low, 0.0), min(each.high, largest.get(name, 1.0)))
    for name, each in values.items()
  }


def score_agreement(reference: Features, pictures: Features) -> Scores:
  """The share of pictures that the classifier puts into the class of their label."""
  return {"agreement": intervals.proportion_interval(class_agreement(pictures))}


def score_inception(reference: Features, pictures: Features) -> Scores:
  """The Inception Score.  It shuffles the logits, since samples are sorted by class."""
  score = lambda logits: {"inception_score": inception_score(logits).mean}
  return intervals.jackknife(score, pictures.logits, groups=GROUPS)


def score_duplicates(reference: Features, pictures: Features, share: float = 0.01) -> Scores:
  """The share of pictures with a near twin in their own set.

  Near means: nearer than the nearest neighbour of all but `share` of as many reference pictures.
  """
  nearest = lambda each: radii(np.asarray(each.features, np.float64), 1)[0]
  limit = np.quantile(nearest(reference.take(slice(len(pictures)))), share)
  return {"duplicates": intervals.proportion_interval(nearest(pictures) <= limit)}


METRICS: dict[str, Callable[[Features, Features], Scores]] = {
  "frechet": score_frechet,
  "kid": score_kid,
  "cmmd": score_cmmd,
  "manifold": score_manifold,
  "agreement": score_agreement,
  "inception_score": score_inception,
  "duplicates": score_duplicates,
}
FIGURES = {name: (name,) for name in METRICS} | {"manifold": ("precision", "recall", "density", "coverage")}
USUAL = tuple(name for name in METRICS if name != "cmmd")
OF_CLASSES = ("manifold", "agreement")  # metrics for which the pictures of one class are enough
LESS_IS_BETTER = ("frechet", "kid", "cmmd", "duplicates")
OF_LOGITS = ("agreement", "inception_score")  # metrics that need a classifier


class Judge(NamedTuple):
  """Features of real pictures, which of METRICS to compute, and the reason for each that is left out."""

  reference: Features
  real: Features
  metrics: tuple[str, ...]
  left_out: dict[str, str]

  def score(self, pictures: Features) -> Scores:
    """All figures of pictures; UserError if their features come from another extractor."""
    if pictures.source != self.reference.source:
      raise UserError(
        f"features of {pictures.source!r} do not compare with those of {self.reference.source!r}; "
        "extract both with one extractor"
      )
    scores: Scores = {}
    for name in self.metrics:
      scores |= METRICS[name](self.reference, pictures)
    return scores

  def compare_with_real(self, pictures: Features, real_scores: Scores | None = None) -> Record:
    """All figures of pictures, each with that of the real pictures; `real_scores` by default computed."""
    real_scores = self.score(self.real) if real_scores is None else real_scores
    return {
      name: interval_record(score, len(pictures))
      | {"real": interval_record(real_scores[name], len(self.real))}
      for name, score in self.score(pictures).items()
    }

  def compare_classes(self, pictures: Features) -> Record:
    """The metrics OF_CLASSES for each class that has at least FEWEST pictures in every set."""
    metrics = tuple(name for name in self.metrics if name in OF_CLASSES)
    records = {}
    for label in np.unique(pictures.labels[pictures.labels >= 0]):
      reference, real, of_class = (
        part.take(part.labels == label) for part in (self.reference, self.real, pictures)
      )
      if metrics and min(map(len, (reference, real, of_class))) >= FEWEST:
        judge = Judge(reference, real, metrics, self.left_out)
        records[str(label)] = judge.compare_with_real(of_class)
    return records


def interval_record(interval: ConfidenceInterval, n: int) -> Record:
  """An interval over n pictures as JSON."""
  return {name: float(value) for name, value in interval._asdict().items()} | {"n": n}


def make_judge(reference: Features, real: Features, metrics: Iterable[str]) -> Judge:
  """A judge by `metrics`, without those that this extractor cannot compute for these data.

  Raises:
    UserError: too few pictures for one of `metrics`.
  """
  n, width = min(len(reference), len(real)), reference.features.shape[1]
  if "frechet" in metrics:
    check_sample_count(n, width)
  left_out = {}
  if not real.logits.shape[1]:
    left_out = {name: "the extractor is no classifier" for name in OF_LOGITS}
  elif (accuracy := float(np.mean(class_agreement(real)))) < LEAST_ACCURACY:
    left_out = {
      "agreement": f"the extractor gives {100 * accuracy:.0f} % of real pictures the class of their label; "
      "its classes are others"
    }
  left_out = {name: reason for name, reason in left_out.items() if name in metrics}
  return Judge(reference, real, tuple(name for name in metrics if name not in left_out), left_out)


def check_sample_count(n: int, width: int) -> None:
  """Raises a UserError if n pictures are too few for a Fréchet distance of features [N, width]."""
  if n <= width:
    raise UserError(
      f"{n} pictures for features of width {width}: their covariance is singular, and the Fréchet distance "
      f"means nothing; expected --n above {width}, or --metrics without frechet"
    )


def measure_reconstructions(
  reconstruct: Callable,
  batches: Iterable[tuple[jax.Array, int]],
  distance: Callable | None = None,
  first_alone: bool = False,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Compares reconstruct(images) with images [B, H, W, C] in [-1, 1]: PSNR in dB, SSIM and LPIPS.

  batches: (images, how many of them count).
  distance: LPIPS, distance(a, b) -> [B]; None without its weights.
  first_alone: return the reconstructions of the first batch only, since a whole split may be large.

  Returns the values by metric, float64 [N], and the reconstructions, uint8 [N, H, W, C].
  """
  measures = {"psnr": psnr, "ssim": ssim} | ({"lpips": distance} if distance else {})
  values, kept = {name: [] for name in measures}, []
  for images, count in batches:
    reconstructed = reconstruct(images)
    for name, measure in measures.items():
      values[name].append(np.asarray(sharding.fetch(measure(images, reconstructed)), np.float64)[:count])
    if not (first_alone and kept):
      kept.append(to_uint8(sharding.fetch(reconstructed))[:count])
  return {name: np.concatenate(each) for name, each in values.items()}, np.concatenate(kept)
