"""Averages of parameters during training, and averages of other widths reconstructed after it.

The power function of EDM2 (Karras et al. 2024, 2312.02696, section 3.1) with exponent gamma; t
counts steps from 1:

  (1)  sigma_rel = (gamma + 1)^1/2 (gamma + 2)^-1 (gamma + 3)^-1/2    std of its profile, relative to t
  (2)  average_t = beta_t average_{t-1} + (1 - beta_t) params_t,  beta_t = (1 - 1/t)^(gamma + 1)
  (3)  average_t = sum_k params_k (C_t(k) - C_t(k - 1)),  C_t(k) = min(k / t, 1)^(gamma + 1)

(3) is exact: the product of (2) telescopes.  For snapshots i with weights x_i that sum to 1, summation
by parts gives

  (4)  sum_i x_i average_i - wanted = - sum_k (params_{k+1} - params_k) S_k,  S_k = sum_i x_i C_i(k) - C(k)

`snapshot_weights` minimises sum_k S_k^2, so the movement of each step counts the same.  Algorithm 3 of
the paper minimises the squares of S_k - S_{k-1}, as if parameters were noise, and its x_i need not sum
to 1.

(3) assumes that every step was made.  After skipped updates, which were not finite, it is approximate.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jldm.core.errors import UserError
from jldm.core.trees import float32

Array = jax.Array

WIDEST = 12**-0.5  # sigma_rel of gamma = 0, the mean of all steps
SMALLEST = 1e-10  # singular values below this share of the largest are noise, of redundant snapshots


class Average(Protocol):
  """A frozen dataclass of numbers.

  The averages are a tuple of float32 trees.  Losses and samples use the first.
  """

  def init(self, params: Any) -> tuple:
    """The averages before the first step, in new buffers."""
    ...

  def update(self, averages: tuple, params: Any, step: Array) -> tuple:
    """The averages after one more step; `step`, int [], counts the steps before it."""
    ...


@dataclasses.dataclass(frozen=True)
class Decay:
  """One exponential average.

  Its decay is (1 + n) / (10 + n) until that exceeds `decay`, so that early weights are forgotten.
  """

  decay: float = 0.999

  def init(self, params: Any) -> tuple:
    return (float32(params),)

  def update(self, averages: tuple, params: Any, step: Array) -> tuple:
    n = step.astype(jnp.float32)
    decay = jnp.minimum(float(self.decay), (1.0 + n) / (10.0 + n))
    return (optax.incremental_update(params, averages[0], 1 - decay),)


@dataclasses.dataclass(frozen=True)
class Power:
  """Equation (2), one average for each sigma_rel.

  From two or more, `reconstruct` makes averages of other widths after training.

  Raises:
    UserError: not a tuple of numbers in (0, 0.288].
  """

  sigma_rel: tuple[float, ...] = (0.05, 0.10)

  def __post_init__(self):
    if not isinstance(self.sigma_rel, tuple) or not self.sigma_rel:
      raise UserError(f"sigma_rel={self.sigma_rel!r}; expected a tuple of widths such as (0.05, 0.10)")
    for width in self.sigma_rel:
      power_exponent(width)

  def init(self, params: Any) -> tuple:
    return tuple(float32(params) for _ in self.sigma_rel)

  def update(self, averages: tuple, params: Any, step: Array) -> tuple:
    # -inf at the first step, whose params are the average
    shrunk = jnp.log1p(-1 / (step.astype(jnp.float32) + 1))
    rates = [-jnp.expm1((power_exponent(width) + 1) * shrunk) for width in self.sigma_rel]
    toward = lambda rate: lambda old, new: old + rate * (new - old)
    return tuple(jax.tree.map(toward(rate), old, params) for rate, old in zip(rates, averages))


def power_exponent(sigma_rel: float) -> float:
  """The exponent of equation (1): the largest root of a cubic.

  Raises:
    UserError: not in (0, 12^-1/2], where the mean of all steps has the largest.
  """
  if not 0 < sigma_rel <= WIDEST:
    raise UserError(
      f"sigma_rel={sigma_rel}; expected more than 0 and at most {WIDEST:.3f}, the mean of all steps"
    )
  inverse = float(sigma_rel) ** -2
  roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
  return max(float(roots.real.max()), 0.0)  # all three are real


def snapshot_weights(
  steps: Sequence[int], sigma_rels: Sequence[float], step: int, sigma_rel: float
) -> np.ndarray:
  """Weights [n], float64, of snapshots with which their sum is the average `sigma_rel` after `step`.

  The snapshots have widths `sigma_rels` and were taken after `steps`.  The weights sum to 1; snapshots
  later than `step` get 0.  Between two snapshots S_k of equation (4) is a combination of a few
  functions.  A QR decomposition replaces them by as many rows, so neither time nor conditioning
  depends on the number of steps.

  Raises:
    UserError: no snapshot was taken after `step`, or a width is not legal.
  """
  steps = np.asarray(steps, np.int64)
  if step not in steps:
    taken = (
      f"one of {', '.join(map(str, np.unique(steps)))}"
      if len(steps)
      else "a step of a snapshot, of which there are none"
    )
    raise UserError(f"step={step} has no snapshot; expected {taken}")
  wanted, powers = (
    power_exponent(sigma_rel) + 1,
    np.array([power_exponent(width) + 1 for width in sigma_rels]),
  )
  used, ends = np.flatnonzero(steps <= step), np.unique(steps[steps <= step])
  kinds, kind = np.unique(powers[used], return_inverse=True)
  rows, start = [], 0
  for end in ends:
    k = np.arange(start + 1, end + 1)[:, None]
    functions = np.concatenate([np.ones(k.shape), (k / end) ** kinds, (k / step) ** wanted], 1)
    # factors of these functions in the C of each snapshot, and last in that of the wanted average
    factors = np.zeros((len(kinds) + 2, len(used) + 1))
    later = steps[used] >= end
    factors[np.where(later, 1 + kind, 0), np.arange(len(used))] = np.where(
      later, (end / steps[used]) ** powers[used], 1
    )
    factors[-1, -1] = 1
    rows.append(np.linalg.qr(functions, mode="r") @ factors)
    start = end
  table = np.concatenate(rows)
  last = np.flatnonzero(steps[used] == step)[0]
  table = table - table[:, [last]]  # all x sum to 1: that of `last` is what the others leave
  others = np.flatnonzero(np.arange(len(used)) != last)
  x = np.zeros(len(steps))
  x[used[others]] = np.linalg.lstsq(table[:, others], table[:, -1], rcond=SMALLEST)[0]
  x[used[last]] = 1 - x.sum()
  return x


def weighted_sum(weights: Iterable[float], trees: Iterable[Any]) -> Any:
  """sum_i weights_i trees_i in float64 on the host, then float32; one tree at a time is in memory."""
  total = None
  for weight, tree in zip(weights, trees, strict=True):
    part = jax.tree.map(lambda x: np.float64(weight) * np.asarray(x, np.float64), tree)  # noqa: B023 (used at once)
    total = part if total is None else jax.tree.map(np.add, total, part)
  return jax.tree.map(lambda x: np.asarray(x, np.float32), total)


def reconstruct(
  sigma_rel: float, step: int, snapshots: Iterable[tuple[tuple[int, float], Callable[[], Any]]]
) -> Any:
  """The average of width `sigma_rel` after `step` from snapshots ((step, sigma_rel), load), load() -> tree.

  Raises:
    UserError: no snapshot was taken after `step`, or widths that are none.
  """
  places, loads = tuple(zip(*snapshots)) or ((), ())
  x = snapshot_weights([t for t, _ in places], [width for _, width in places], step, sigma_rel)
  used = np.flatnonzero(x)
  return weighted_sum(x[used], (loads[i]() for i in used))
