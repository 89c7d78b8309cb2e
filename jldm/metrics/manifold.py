"""Whether samples look like the data, and whether all of the data is among the samples, by nearest neighbours of features.

The ball of a point reaches to the k-th nearest other point of its own set.

  precision  the share of samples in the ball of any real point;  recall: the two sets exchanged
             Kynkäänniemi et al. 2019 (1904.06991), eq. 1 and 2
  density    in how many balls of real points a sample is, over k;  coverage: the share of real points whose ball has a sample
             Naeem et al. 2020 (2002.09797), eq. 2 and 3
"""

from collections.abc import Iterator

import numpy as np

from jldm.core.errors import UserError

BLOCK = 1000  # rows of a matrix of distances that are made at once


def distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
  """Squared distances of a [N, D] to b [M, D], as (rows of a, [rows, M]) of at most BLOCK rows each, float64."""
  lengths = np.square(b).sum(1)
  for start in range(0, len(a), BLOCK):
    rows = slice(start, min(start + BLOCK, len(a)))
    part = a[rows]
    yield rows, np.maximum(np.square(part).sum(1)[:, None] + lengths - 2 * part @ b.T, 0)


def radii(points: np.ndarray, k: int) -> np.ndarray:
  """Squared distance [N] of each of points [N, D] to its k-th nearest other one."""
  found = np.empty(len(points))
  for rows, squared in distances(points, points):
    squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = np.inf
    found[rows] = np.partition(squared, k - 1, 1)[:, k - 1]
  return found


def hits(points: np.ndarray, centres: np.ndarray, squared_radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """How many balls each of `points` [N, D] is in, int [N], and whether each ball of `centres` [M, D] has one, bool [M]."""
  within, met = np.empty(len(points), int), np.zeros(len(centres), bool)
  for rows, squared in distances(points, centres):
    inside = squared <= squared_radii
    within[rows] = inside.sum(1)
    met |= inside.any(0)
  return within, met


def manifold(real: np.ndarray, samples: np.ndarray, k: int = 3, k_density: int = 5) -> dict[str, float]:
  """precision, recall (neighbour k), density and coverage (neighbour k_density) of features [N, D] and [M, D].

  Raises:
    UserError: k < 1, sets of no more than k points, or features of different widths or not finite.
  """
  real, samples = (np.asarray(features, np.float64) for features in (real, samples))
  if real.ndim != 2 or samples.ndim != 2 or real.shape[1] != samples.shape[1]:
    raise UserError(f"features of shapes {real.shape} and {samples.shape}; expected [N, D] and [M, D]")
  if min(k, k_density) < 1 or min(len(real), len(samples)) <= max(k, k_density):
    raise UserError(f"k={k}, k_density={k_density} of {len(real)} and {len(samples)} points; expected 1 <= k < both numbers")
  if not (np.isfinite(real).all() and np.isfinite(samples).all()):
    raise UserError("features that are not finite; the images or the extractor's weights are broken")
  offset = real.mean(0)  # distances are differences of squares: small ones want a small mean
  real, samples = real - offset, samples - offset
  precise, _ = hits(samples, real, radii(real, k))
  recalled, _ = hits(real, samples, radii(samples, k))
  dense, covered = hits(samples, real, radii(real, k_density))
  return {
    "precision": float((precise > 0).mean()),
    "recall": float((recalled > 0).mean()),
    "density": float(dense.mean() / k_density),
    "coverage": float(covered.mean()),
  }
