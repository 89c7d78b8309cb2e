"""Precision, recall, density and coverage: do samples look like the data, and do they cover it?

All four use nearest neighbours of features.

The ball of a point reaches to the k-th nearest other point of its own set.

  precision  the share of samples in the ball of any real point;  recall: the two sets exchanged
             Kynkäänniemi et al. 2019 (1904.06991), eq. 1 and 2
  density    in how many balls of real points a sample is, over k;  coverage: the share of real points whose
  ball has a sample
             Naeem et al. 2020 (2002.09797), eq. 2 and 3

Where features repeat, points lie on the rim of a ball: the rim belongs to it for precision and recall, as in
eq. 1 of the one paper, and does not for density and coverage, as in `prdc`, the code of the other.  Distances
that differ by rounding alone are equal.
"""

import numpy as np

from jldm.core.errors import UserError
from jldm.metrics.features import check_features, squared_distances

ROUNDING = (
  1e-12  # of squared distances, as a share of the largest squared norms: ten times what float64 loses
)


def radii(points: np.ndarray, *neighbours: int) -> list[np.ndarray]:
  """Squared distances [N] of each of points [N, D] to its k-th nearest other one, for each k of
  `neighbours`.
  """
  radius = np.empty((len(neighbours), len(points)))
  for rows, squared in squared_distances(points, points):
    squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = np.inf
    radius[:, rows] = np.partition(squared, [k - 1 for k in neighbours], 1)[:, [k - 1 for k in neighbours]].T
  return list(radius)


def manifold(real: np.ndarray, samples: np.ndarray, k: int = 3, k_density: int = 5) -> dict[str, float]:
  """precision, recall (neighbour k), density and coverage (neighbour k_density) of features [N, D] and [M,
  D].

  `prdc` has one k for all four, and leaves the rim out of the balls of precision and recall too.

  Raises:
    UserError: k < 1, sets of no more than k points, or features of different widths or not finite.
  """
  real, samples = check_features(real, samples)
  if min(k, k_density) < 1 or min(len(real), len(samples)) <= max(k, k_density):
    raise UserError(
      f"k={k}, k_density={k_density} of {len(real)} and {len(samples)} points; expected 1 <= k < both numbers"
    )
  offset = real.mean(0)  # distances are differences of squares: small ones want a small mean
  real, samples = real - offset, samples - offset
  rim = ROUNDING * sum(np.square(points).sum(1).max() for points in (real, samples))
  near, wide = radii(real, k, k_density)
  (reach,) = radii(samples, k)
  precise, dense = np.empty(len(samples), bool), np.empty(len(samples))
  recalled, covered = (np.zeros(len(real), bool) for _ in range(2))
  for rows, squared in squared_distances(samples, real):
    precise[rows] = (squared <= near + rim).any(1)
    recalled |= (squared <= reach[rows, None] + rim).any(0)
    inside = squared < wide - rim
    dense[rows] = inside.sum(1)
    covered |= inside.any(0)
  return {
    "precision": float(precise.mean()),
    "recall": float(recalled.mean()),
    "density": float(dense.mean() / k_density),
    "coverage": float(covered.mean()),
  }
