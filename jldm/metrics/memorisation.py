"""Tests whether samples copy training pictures, by comparison with held-out pictures of the same origin.

  (1)  nearer   The share of samples whose nearest picture was trained on, in a pool of as many training as
                held-out pictures.  A sampler that copies nothing gets 1/2, whatever else is wrong with it.
                Samples that share a nearest picture are not independent: if the j-th of the n pictures is
                nearest to c_j samples, the count is sum_j c_j B_j, where B is 1 for a random half of them,
                of variance (sum c^2 - (sum c)^2 / n) n / (4 (n - 1)).
  (2)  copies   The share of samples with a small r = d(training pictures) / d(held-out pictures), where d is
                the distance to the nearest.  Small is below the limit that 99 of 100 held-out pictures
                exceed; these are not compared with themselves.  If samples are like held-out pictures, the
                number of N samples below the k-th smallest of M such r is beta-binomial
                (N; k, M - k + 1).  We test k = M / 100, and k = 1, which is stronger if the split has no
                twins.  Of samples that share a training picture only the first counts.

(1) detects that many samples lean to the training pictures, (2) that a few are copies.  Both test whether
samples are nearer to training pictures than new pictures are, as in Meehan et al. 2020 (2004.05675).  The
ratio is compared, not the distance, as in Carlini et al. 2023 (2301.13188, section 5.1): blurred samples
are near to everything, and are not flagged.  Training and held-out pictures must be a random split of one
set.  Distances are between features or pixels, float64.
"""

import dataclasses

import numpy as np
from scipy import special, stats

from jldm.core.errors import UserError
from jldm.metrics.features import check_features, squared_distances

COLUMNS = 1000  # pictures that every row is compared with at once
FEWEST = 20  # pictures of each kind


@dataclasses.dataclass(frozen=True)
class SuspectPairs:
  """The samples with the smallest r, in that order, one per training picture.

  sample, train, held_out: indices int [K] in the three sets.   to_train, to_held_out: distances float64 [K].
  """

  sample: np.ndarray
  train: np.ndarray
  held_out: np.ndarray
  to_train: np.ndarray
  to_held_out: np.ndarray


@dataclasses.dataclass(frozen=True)
class Audit:
  """The result; a chance is the p-value: the probability of such a value if the sampler copies nothing."""

  nearer: float
  nearer_chance: float
  copies: float
  copies_chance: float
  limit: float  # of r
  flagged: bool
  pairs: SuspectPairs


def nearest_in_pool(
  points: np.ndarray, pool: np.ndarray, own_places: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Of each of points [N, D], the nearest of pool [M, D]: its place, int [N], and distance [N].

  own_places: the indices [N] of the points in the pool, which are not compared with themselves.
  """
  place, least = np.zeros(len(points), int), np.full(len(points), np.inf)
  for start in range(0, len(pool), COLUMNS):
    for rows, squared in squared_distances(points, pool[start : start + COLUMNS]):
      if own_places is not None:
        inside = np.flatnonzero((start <= own_places[rows]) & (own_places[rows] < start + COLUMNS))
        squared[inside, own_places[rows][inside] - start] = np.inf
      best = squared.argmin(1)
      distance = squared[np.arange(len(best)), best]
      better = distance < least[rows]
      place[rows] = np.where(better, start + best, place[rows])
      least[rows] = np.minimum(distance, least[rows])
  # The distance of a copy is lost in a difference of squares.
  return place, np.linalg.norm(points - pool[place], axis=1)


def share_nearer_to_train(
  samples: np.ndarray, train: np.ndarray, held_out: np.ndarray
) -> tuple[float, float]:
  """(1) of as many training as held-out pictures: the share, and its chance."""
  half = len(train)
  pool = np.concatenate([train, held_out])
  place, _ = nearest_in_pool(samples, pool)
  count = np.bincount(place, minlength=2 * half)
  variance = (np.square(count).sum() - len(samples) ** 2 / (2 * half)) * 2 * half / (4 * (2 * half - 1))
  share = np.mean(place < half)
  spread = np.sqrt(max(variance, 1e-9))  # 0 where every picture has as many samples
  return float(share), float(special.ndtr((0.5 - share) * len(samples) / spread))


def audit(
  samples: np.ndarray,
  train: np.ndarray,
  held_out: np.ndarray,
  pairs: int = 16,
  level: float = 1e-3,
  controls: int = 1000,
  seed: int = 0,
) -> Audit:
  """Tests (1) and (2) on features or pixels [N, D]; flagged if either chance is below level / 2.

  controls: how many held-out pictures give the distribution of r without copies.
  seed: chooses them, and the training pictures of (1).

  Raises:
    UserError: fewer than FEWEST pictures of a kind, different widths, or values that are not finite.
  """
  samples, train, held_out = check_features(samples, train, held_out)
  if min(map(len, (samples, train, held_out))) < FEWEST:
    counts = f"{len(samples)} samples, {len(train)} training and {len(held_out)} held-out pictures"
    raise UserError(f"{counts}; expected at least {FEWEST} of each")
  offset = train.mean(0)
  samples, train, held_out = samples - offset, train - offset, held_out - offset
  rng = np.random.default_rng(seed)
  half = min(len(train), len(held_out))
  some = lambda pictures, count: np.sort(rng.permutation(len(pictures))[:count])
  nearer, nearer_chance = share_nearer_to_train(
    samples, train[some(train, half)], held_out[some(held_out, half)]
  )

  chosen = some(held_out, controls)
  control = distance_ratio(
    nearest_in_pool(held_out[chosen], train)[1], nearest_in_pool(held_out[chosen], held_out, chosen)[1]
  )
  in_train, to_train = nearest_in_pool(samples, train)
  in_held_out, to_held_out = nearest_in_pool(samples, held_out)
  r = distance_ratio(to_train, to_held_out)
  copies_chance, limit = copies_test(r[np.unique(in_train, return_index=True)[1]], control)

  order = np.argsort(r, kind="stable")
  first = order[np.sort(np.unique(in_train[order], return_index=True)[1])[:pairs]]
  shown = SuspectPairs(first, *(each[first] for each in (in_train, in_held_out, to_train, to_held_out)))
  flagged = min(nearer_chance, copies_chance) < level / 2
  return Audit(nearer, nearer_chance, float(np.mean(r < limit)), copies_chance, limit, bool(flagged), shown)


def copies_test(ratios: np.ndarray, control: np.ndarray) -> tuple[float, float]:
  """(2) of the r of samples [N] and of held-out pictures [M]: its chance, and the limit of r."""
  limits, least = np.sort(control), max(len(control) // 100, 1)
  below = lambda k: (ratios < limits[k - 1]).sum()
  chances = [stats.betabinom.sf(below(k) - 1, len(ratios), k, len(control) - k + 1) for k in (1, least)]
  return min(1.0, 2 * float(min(chances))), float(limits[least - 1])


def distance_ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """a / b, 1 where both are 0."""
  return np.divide(a, b, out=np.where(a > 0, np.inf, 1.0), where=b > 0)
