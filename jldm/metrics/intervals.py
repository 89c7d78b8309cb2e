"""Confidence intervals of metrics, by default at 95 %: how much a value varies with the images.

  (1)  normal     value +- z sqrt(sum over sets of var(f) / N), f the contribution of each member, up to a
  constant
  (2)  share      of N independent yes or no, Wilson 1927; its width is not zero if all are yes
  (3)  jackknife  value +- t_(G-1) sqrt(sum over sets of (G - 1) / G sum_g (v_g - mean v)^2), v_g
                  without the g-th of G groups of a set: Quenouille 1949; Efron & Stein 1981; any
                  function of the members as a whole

None covers a bias: a value that is too large for few images is too large every time.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import special

from jldm.core.errors import UserError


class ConfidenceInterval(NamedTuple):
  """A figure and the ends of its interval."""

  value: float
  low: float
  high: float


def normal_interval(value: float, *terms: np.ndarray, level: float = 0.95) -> ConfidenceInterval:
  """(1), with the terms [N] of each set."""
  half = special.ndtri((1 + level) / 2) * np.sqrt(sum(each.var(ddof=1) / len(each) for each in terms))
  return ConfidenceInterval(float(value), float(value - half), float(value + half))


def mean_interval(terms: np.ndarray, level: float = 0.95) -> ConfidenceInterval:
  """The mean of independent terms [N]."""
  terms = np.asarray(terms, np.float64)
  return normal_interval(terms.mean(), terms, level=level)


def proportion_interval(hits: np.ndarray, level: float = 0.95) -> ConfidenceInterval:
  """(2), of bool [N]."""
  n, p, z = len(hits), float(np.mean(hits)), special.ndtri((1 + level) / 2)
  middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
  # The bounds change rounding errors only.
  return ConfidenceInterval(p, float(min(max(middle - half, 0), p)), float(max(min(middle + half, 1), p)))


def jackknife(
  statistic: Callable[..., Mapping[str, float]],
  *sets: np.ndarray,
  groups: int = 20,
  level: float = 0.95,
  seed: int = 0,
) -> dict[str, ConfidenceInterval]:
  """(3), of each figure in statistic(*sets); sets [N, ...] are cut into groups at random, one set at a time.

  Raises:
    UserError: fewer than two groups, or more than members.
  """
  if not 2 <= groups <= min(map(len, sets)):
    raise UserError(f"groups={groups} of {min(map(len, sets))} members; expected 2 to that many")
  rng = np.random.default_rng(seed)
  variance: dict[str, float] = {}
  for i, members in enumerate(sets):
    parts = np.array_split(rng.permutation(len(members)), groups)
    without = [statistic(*sets[:i], np.delete(members, part, 0), *sets[i + 1 :]) for part in parts]
    for name in without[0]:
      values = np.array([values_without[name] for values_without in without])
      variance[name] = variance.get(name, 0.0) + (groups - 1) * values.var()
  t = special.stdtrit(groups - 1, (1 + level) / 2)
  return {
    name: ConfidenceInterval(
      float(value), float(value - t * variance[name] ** 0.5), float(value + t * variance[name] ** 0.5)
    )
    for name, value in statistic(*sets).items()
  }
