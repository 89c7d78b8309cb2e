"""What pictures are worth beside real ones, and reconstructions beside their originals.

A figure of N samples alone says little: Fréchet distances are too large for few pictures, and
coverage small where there are fewer samples than real ones.  So every figure of samples stands
beside that of as many real pictures, against the same reference.  Sampling and networks are handed
in; what is handed out is data.
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
ORDER_SEED = 0  # which real pictures are taken belongs to the data, not to a run
MOST_PAIRS = 10_000  # real pictures that every sample is compared with by a kernel
GROUPS = 10  # of the jackknife
KNOWS = 0.5  # share of real pictures that a classifier must class right before it may judge samples
FEWEST = 10  # pictures of a class


class Split(NamedTuple):
  """Some pictures of a source."""

  source: Source
  rows: np.ndarray


class Sets(NamedTuple):
  """`reference`: training pictures; `real`: as many pictures as there are samples, none of them in the
  reference; `held_out`: pictures that were not trained on.
  """

  reference: Split
  real: Split
  held_out: Split


def choose_real_sets(train: Source, held_out: Source, n: int, most: int) -> Sets:
  """The real pictures that n samples are compared with, the same at every call; at most `most` of the reference.

  Where fewer than n are held out, n training pictures are set aside to be the real ones.

  Raises:
    UserError: then none are left.
  """
  order, held = (epoch_permutation(ORDER_SEED, 0, len(source)) for source in (train, held_out))
  if len(held) >= n:
    return Sets(Split(train, order[:most]), Split(held_out, held[:n]), Split(held_out, held[:n]))
  if len(order) <= n:
    raise UserError(
      f"n={n}, where {len(held)} pictures are held out and {len(order)} trained on; expected at most "
      f"{max(len(held), len(order) - 1)}"
    )
  return Sets(Split(train, order[n : n + most]), Split(train, order[:n]), Split(held_out, held))


def proportional_labels(labels: np.ndarray, n: int) -> np.ndarray:
  """n labels, ascending, int32, in the proportion in which they occur in `labels` [N]; all -1 where
  none is known.
  """
  names, counts = np.unique(labels[labels >= 0], return_counts=True)
  if not len(names):
    return np.full(n, -1, np.int32)
  exact = n * counts / counts.sum()
  shares = np.floor(exact).astype(int)
  shares[np.argsort(shares - exact, kind="stable")[: n - shares.sum()]] += 1
  return np.repeat(names, shares).astype(np.int32)


def class_agreement(found: Features) -> np.ndarray:
  """Whether the classifier finds the class that was asked for, bool [N]."""
  return found.logits.argmax(1) == found.labels


def score_frechet(reference: Features, found: Features) -> dict[str, ConfidenceInterval]:
  return {"frechet": frechet.frechet_interval(reference.features, found.features)}


def score_kid(reference: Features, found: Features) -> dict[str, ConfidenceInterval]:
  return {"kid": mmd.kernel_distance(reference.features[:MOST_PAIRS], found.features)}


def score_cmmd(reference: Features, found: Features) -> dict[str, ConfidenceInterval]:
  return {"cmmd": mmd.cmmd(reference.features[:MOST_PAIRS], found.features)}


def score_manifold(reference: Features, found: Features) -> dict[str, ConfidenceInterval]:
  """Of as many real pictures as samples, where there are so many."""
  values = intervals.jackknife(manifold, reference.features[: len(found)], found.features, groups=GROUPS)
  most = {"density": np.inf}
  return {
    name: ConfidenceInterval(each.value, max(each.low, 0.0), min(each.high, most.get(name, 1.0)))
    for name, each in values.items()
  }


def score_agreement(reference: Features, found: Features) -> dict[str, ConfidenceInterval]:
  return {"agreement": intervals.proportion_interval(class_agreement(found))}


def score_inception(reference: Features, found: Features) -> dict[str, ConfidenceInterval]:
  score = lambda logits: {
    "inception_score": inception_score(logits).mean
  }  # shuffled: samples come class by class
  return intervals.jackknife(score, found.logits, groups=GROUPS)


def score_duplicates(
  reference: Features, found: Features, share: float = 0.01
) -> dict[str, ConfidenceInterval]:
  """The share of pictures with another one of their set nearer than `share` of as many reference
  pictures have one.
  """
  nearest = lambda each: radii(np.asarray(each.features, np.float64), 1)[0]
  limit = np.quantile(nearest(reference.take(slice(len(found)))), share)
  return {"duplicates": intervals.proportion_interval(nearest(found) <= limit)}


METRICS: dict[str, Callable[[Features, Features], dict[str, ConfidenceInterval]]] = {
  "frechet": score_frechet,
  "kid": score_kid,
  "cmmd": score_cmmd,
  "manifold": score_manifold,
  "agreement": score_agreement,
  "inception_score": score_inception,
  "duplicates": score_duplicates,
}
FIGURES = {name: (name,) for name in METRICS} | {
  "manifold": ("precision", "recall", "density", "coverage")
}  # of each
USUAL = tuple(name for name in METRICS if name != "cmmd")  # which is made for CLIP's features
OF_CLASSES = ("manifold", "agreement")  # what the pictures of one class are enough for
LESS_IS_BETTER = ("frechet", "kid", "cmmd", "duplicates")
OF_LOGITS = ("agreement", "inception_score")


class Judge(NamedTuple):
  """Features of real pictures, which of METRICS are asked for, and why others are not."""

  reference: Features
  real: Features
  metrics: tuple[str, ...]
  left_out: dict[str, str]

  def score(self, found: Features) -> dict[str, ConfidenceInterval]:
    """Every figure of pictures; UserError for features of another extractor."""
    if found.source != self.reference.source:
      raise UserError(
        f"features of {found.source!r} and of {self.reference.source!r} do not compare; make both with one"
      )
    return {
      key: value for name in self.metrics for key, value in METRICS[name](self.reference, found).items()
    }

  def beside(self, found: Features, real: dict[str, ConfidenceInterval] | None = None) -> Record:
    """Every figure of pictures, with that of the real pictures, which is computed where it is not given."""
    real = self.score(self.real) if real is None else real
    return {
      name: interval_record(value, len(found)) | {"real": interval_record(real[name], len(self.real))}
      for name, value in self.score(found).items()
    }

  def classes(self, found: Features) -> Record:
    """OF_CLASSES, of each class with FEWEST pictures in every set."""
    few = self._replace(metrics=tuple(name for name in self.metrics if name in OF_CLASSES))
    each = {}
    for label in np.unique(found.labels[found.labels >= 0]):
      reference, real, own = (part.take(part.labels == label) for part in (self.reference, self.real, found))
      if few.metrics and min(map(len, (reference, real, own))) >= FEWEST:
        each[str(label)] = few._replace(reference=reference, real=real).beside(own)
    return each


def interval_record(found: ConfidenceInterval, n: int) -> Record:
  """As data."""
  return {name: float(value) for name, value in found._asdict().items()} | {"n": n}


def make_judge(reference: Features, real: Features, metrics: Iterable[str]) -> Judge:
  """Without what this extractor cannot tell of these data.

  Raises:
    UserError: too few pictures for one of `metrics`.
  """
  n, width = min(len(reference), len(real)), reference.features.shape[1]
  if "frechet" in metrics:
    check_sample_count(n, width)
  left_out = {}
  right = float(np.mean(class_agreement(real))) if real.logits.shape[1] else 0.0
  if not real.logits.shape[1]:
    left_out = {name: "the extractor is no classifier" for name in OF_LOGITS}
  elif right < KNOWS:
    left_out = {
      "agreement": f"of real pictures the extractor classes {100 * right:.0f} % as they are labelled: it knows others"
    }
  left_out = {name: why for name, why in left_out.items() if name in metrics}
  return Judge(reference, real, tuple(name for name in metrics if name not in left_out), left_out)


def check_sample_count(n: int, width: int) -> None:
  """Raises a UserError where n pictures are too few for a Fréchet distance."""
  if n <= width:
    raise UserError(
      f"{n} pictures, where features are {width} wide: their covariance is singular and the Fréchet distance means "
      f"nothing; expected --n above {width}, or --metrics without frechet"
    )


def measure_reconstructions(
  call: Callable,
  batches: Iterable[tuple[jax.Array, int]],
  distance: Callable | None = None,
  first_alone: bool = False,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """PSNR in dB and SSIM of call(images) against images [B, H, W, C] in [-1, 1], by name float64 [N],
  and what came back.

  `batches` gives (images, how many of them count).  `distance(a, b) -> [B]` is LPIPS, where a
  person has weights of it.  What came back is uint8 [N, H, W, C], or of the first batch alone,
  since a whole split may be large.
  """
  measures = {"psnr": psnr, "ssim": ssim} | ({"lpips": distance} if distance else {})
  values, kept = {name: [] for name in measures}, []
  for images, count in batches:
    back = call(images)
    for name, measure in measures.items():
      values[name].append(np.asarray(sharding.fetch(measure(images, back)), np.float64)[:count])
    if not (first_alone and kept):
      kept.append(to_uint8(sharding.fetch(back))[:count])
  return {name: np.concatenate(each) for name, each in values.items()}, np.concatenate(kept)
