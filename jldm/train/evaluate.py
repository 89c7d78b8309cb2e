"""What pictures are worth beside real ones, and reconstructions beside their originals, with the same of real pictures.

A figure of N samples alone says little: Fréchet distances are too large for few pictures, coverage is small where there are
fewer samples than real ones.  So every figure of samples stands beside that of as many real pictures, against the same
reference.  Sampling and networks are handed in; what is handed out is data.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from jldm.core.errors import UserError
from jldm.data.index import permutation
from jldm.data.source import Source
from jldm.metrics import frechet, intervals, mmd
from jldm.metrics.image import psnr, ssim
from jldm.metrics.inception_score import inception_score
from jldm.metrics.intervals import Interval
from jldm.metrics.manifold import manifold
from jldm.train.features import Features

Told = dict[str, Any]
ORDER_SEED = 0  # which real pictures are taken belongs to the data, not to a run
MOST_PAIRS = 10_000  # real pictures that every sample is compared with by a kernel
GROUPS = 10  # of the jackknife
KNOWS = 0.5  # share of real pictures that a classifier must class right before it may judge samples
FEWEST = 10  # pictures of a class


class Split(NamedTuple):
  """Some pictures of a source."""

  source: Source
  rows: np.ndarray

  def __len__(self) -> int:
    return len(self.rows)


class Sets(NamedTuple):
  """`reference`: training pictures that others are compared with; `real`: as many pictures as there are samples, none of
  them in the reference; `held_out`: pictures that were not trained on."""

  reference: Split
  real: Split
  held_out: Split


def choose(train: Source, held_out: Source, n: int, most: int) -> Sets:
  """The real pictures of a comparison of n samples, the same at every call; at most `most` of the reference.

  Where fewer than n are held out, n training pictures are set aside.

  Raises:
    UserError: then none are left.
  """
  order, held = (permutation(ORDER_SEED, 0, len(source)) for source in (train, held_out))
  if len(held) >= n:
    return Sets(Split(train, order[:most]), Split(held_out, held[:n]), Split(held_out, held[:n]))
  if len(order) <= n:
    raise UserError(f"n={n}, where {len(held)} pictures are held out and {len(order)} trained on; expected at most "
                    f"{max(len(held), len(order) - 1)}")
  return Sets(Split(train, order[n : n + most]), Split(train, order[:n]), Split(held_out, held))


def in_proportion(labels: np.ndarray, n: int) -> np.ndarray:
  """n labels, ascending, int32, in the proportion in which they occur in `labels` [N]; -1 all where none is known."""
  names, counts = np.unique(labels[labels >= 0], return_counts=True)
  if not len(names):
    return np.full(n, -1, np.int32)
  exact = n * counts / counts.sum()
  shares = np.floor(exact).astype(int)
  rest = np.argsort(shares - exact, kind="stable")[: n - shares.sum()]
  shares[rest] += 1
  return np.repeat(names, shares).astype(np.int32)


def agreement(found: Features) -> np.ndarray:
  """Whether the classifier finds the class that was asked for, bool [N]."""
  return found.logits.argmax(1) == found.labels


def by_distance(reference: Features, found: Features) -> dict[str, Interval]:
  return {"frechet": frechet.interval(reference.features, found.features)}


def by_kernel(reference: Features, found: Features) -> dict[str, Interval]:
  return {"kid": mmd.kernel_distance(reference.features[:MOST_PAIRS], found.features)}


def by_neighbours(reference: Features, found: Features) -> dict[str, Interval]:
  """Of as many real pictures as samples, where there are so many."""
  return intervals.jackknife(manifold, reference.features[: len(found.features)], found.features, groups=GROUPS)


def by_class(reference: Features, found: Features) -> dict[str, Interval]:
  return {"agreement": intervals.share(agreement(found))}


def by_confidence(reference: Features, found: Features) -> dict[str, Interval]:
  score = lambda logits: {"inception_score": inception_score(logits, seed=None).mean}
  return intervals.jackknife(score, found.logits, groups=GROUPS)


METRICS: dict[str, Callable[[Features, Features], dict[str, Interval]]] = {
  "frechet": by_distance,
  "kid": by_kernel,
  "manifold": by_neighbours,
  "agreement": by_class,
  "inception_score": by_confidence,
}


class Judge(NamedTuple):
  """The features of real pictures, and what of METRICS is asked for."""

  reference: Features
  real: Features
  metrics: tuple[str, ...]

  def score(self, found: Features) -> dict[str, Interval]:
    """Every figure of pictures [N]."""
    return {key: value for name in self.metrics for key, value in METRICS[name](self.reference, found).items()}

  def beside(self, found: Features) -> dict[str, Told]:
    """Every figure of pictures [N] as data, with that of the real pictures."""
    real = self.score(self.real)
    return {name: told(value, len(found.labels)) | {"real": told(real[name], len(self.real.labels))}
            for name, value in self.score(found).items()}


def told(found: Interval, n: int) -> Told:
  """As data."""
  return {name: float(value) for name, value in found._asdict().items()} | {"n": n}


def usable(names: Iterable[str], real: Features, width: int, n: int) -> tuple[tuple[str, ...], dict[str, str]]:
  """Which of METRICS this extractor can tell of these data, and why not the others.

  Raises:
    UserError: n pictures are too few for one of them.
  """
  if "frechet" in names and n <= width:
    raise UserError(f"n={n}, where features are {width} wide: of so few pictures the Fréchet distance means nothing; expected "
                    f"more than {width}, or --metrics without frechet")
  left_out = {}
  knows = real.logits.shape[1] > 0 and float(np.mean(agreement(real)))
  if not knows:
    left_out |= {name: "the extractor is no classifier" for name in ("agreement", "inception_score") if name in names}
  elif "agreement" in names and knows < KNOWS:
    left_out["agreement"] = f"of real pictures the extractor classes {100 * knows:.0f} % as their labels: its classes are others"
  return tuple(name for name in names if name not in left_out), left_out


def each_class(judge: Judge, found: Features) -> dict[str, Told]:
  """By class what of METRICS a few pictures can tell, of classes with FEWEST pictures in every set."""
  few = judge._replace(metrics=tuple(name for name in judge.metrics if name in ("manifold", "agreement")))
  classes = {}
  for label in np.unique(found.labels[found.labels >= 0]):
    own = [each.take(each.labels == label) for each in (judge.reference, judge.real, found)]
    if min(len(each.labels) for each in own) >= FEWEST:
      classes[str(label)] = few._replace(reference=own[0], real=own[1]).beside(own[2])
  return classes


def nearest_other(features: np.ndarray) -> np.ndarray:
  """The squared distance of each of [N, D] to its nearest other one, [N]."""
  (found,) = radii(np.asarray(features, np.float64), 1)
  return found


def duplicates(real: np.ndarray, samples: np.ndarray, share: float = 0.01) -> Interval:
  """The share of samples [N, D] with another one nearer than `share` of as many real pictures have another one."""
  limit = np.quantile(nearest_other(real[: len(samples)]), share)
  return intervals.share(nearest_other(samples) <= limit)


class Reconstructed(NamedTuple):
  """Of N pictures: what came back, uint8 [N, H, W, C], and how near it is, by name float [N]."""

  images: np.ndarray
  values: dict[str, np.ndarray]


def reconstruct(call: Callable, batches: Iterable[tuple[np.ndarray, int]], distance: Callable | None = None) -> Reconstructed:
  """call(images) of images uint8 [B, H, W, C] -> [-1, 1]; `batches` gives (images, how many of them count).

  `distance(a, b) -> [B]` is LPIPS where a person has weights of it.
  """
  measures = {"psnr": psnr, "ssim": ssim} | ({"lpips": distance} if distance else {})
  values, backs = {name: [] for name in measures}, []
  for images, count in batches:
    shown, back = pixels(images), call(images)
    for name, measure in measures.items():
      values[name].append(np.asarray(measure(shown, back), np.float64)[:count])
    backs.append(to_uint8(back)[:count])
  return Reconstructed(np.concatenate(backs), {name: np.concatenate(each) for name, each in values.items()})
