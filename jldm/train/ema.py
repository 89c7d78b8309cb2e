"""Averages of parameters while training, as data, and averages of other widths made afterwards from saved ones.

The power function of EDM2 (Karras et al. 2024, 2312.02696, section 3.1) with exponent gamma; t
counts steps from 1:

  (1)  sigma_rel = (gamma + 1)^1/2 (gamma + 2)^-1 (gamma + 3)^-1/2    std of its profile, as a share of the training
  (2)  average_t = beta_t average_{t-1} + (1 - beta_t) params_t,  beta_t = (1 - 1/t)^(gamma + 1)
  (3)  average_t = sum_k params_k (C_t(k) - C_t(k - 1)),  C_t(k) = min(k / t, 1)^(gamma + 1)

(3) is exact: the product of (2) telescopes.  With snapshots i and weights x_i that sum to 1,
    summing by parts,

  (4)  sum_i x_i average_i - wanted = - sum_k (params_{k+1} - params_k) S_k,  S_k = sum_i x_i C_i(k) - C(k)

and `weights` minimises sum_k S_k^2: no step's movement is worth more than another's.  Algorithm 3
of the paper minimises the squares of S_k - S_{k-1}, for parameters that would be noise, and the x_i
need not sum to 1.

(3) takes every step to have been made: after a non-finite update, which is skipped, it holds but nearly.
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
SMALLEST = 1e-10  # singular values below this share of the largest are noise: snapshots that say the same


class Average(Protocol):
  """A frozen dataclass of numbers; its averages are a tuple of float32 trees, of which losses and
  samples see the first.
  """

  def init(self, params: Any) -> tuple:
    """The averages before the first step, in buffers of their own."""
    ...

  def update(self, averages: tuple, params: Any, step: Array) -> tuple:
    """The averages with the params of one more step; `step`, int [], counts those before it."""
    ...


@dataclasses.dataclass(frozen=True)
class Decay:
  """One exponential average, which warms up: (1 + n) / (10 + n) until that exceeds `decay` forgets
  early weights.
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
  """Equation (2), one average for each sigma_rel; two or more can be made into others afterwards by
  `reconstruct`.

  Raises:
    UserError: not a tuple of numbers in (0, 0.288].
  """

  sigma_rel: tuple[float, ...] = (0.05, 0.10)

  def __post_init__(self):
    if not isinstance(self.sigma_rel, tuple) or not self.sigma_rel:
      raise UserError(f"sigma_rel={self.sigma_rel!r}; expected a tuple of widths such as (0.05, 0.10)")
    for width in self.sigma_rel:
      gamma(width)

  def init(self, params: Any) -> tuple:
    return tuple(float32(params) for _ in self.sigma_rel)

  def update(self, averages: tuple, params: Any, step: Array) -> tuple:
    shrunk = jnp.log1p(
      -1 / (step.astype(jnp.float32) + 1)
    )  # -inf at the first step, whose params are the average
    rates = [-jnp.expm1((gamma(width) + 1) * shrunk) for width in self.sigma_rel]
    toward = lambda rate: lambda old, new: old + rate * (new - old)
    return tuple(jax.tree.map(toward(rate), old, params) for rate, old in zip(rates, averages))


def gamma(sigma_rel: float) -> float:
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


def weights(steps: Sequence[int], sigma_rels: Sequence[float], step: int, sigma_rel: float) -> np.ndarray:
  """What snapshots, of widths `sigma_rels` after `steps`, are weighted by for `sigma_rel` after
  `step`: float64 [n].

  They sum to 1; those after `step` weigh 0.  Between two snapshots S_k of equation (4) is made of a
  few functions, which a QR decomposition replaces by as many rows: neither time nor conditioning
  suffers from the number of steps.

  Raises:
    UserError: no snapshot was taken after `step`, or widths that are none.
  """
  steps = np.asarray(steps, np.int64)
  if step not in steps:
    taken = (
      f"one of {', '.join(map(str, np.unique(steps)))}"
      if len(steps)
      else "a step of a snapshot, of which there are none"
    )
    raise UserError(f"step={step} has no snapshot; expected {taken}")
  wanted, powers = gamma(sigma_rel) + 1, np.array([gamma(width) + 1 for width in sigma_rels])
  used, ends = np.flatnonzero(steps <= step), np.unique(steps[steps <= step])
  kinds, kind = np.unique(powers[used], return_inverse=True)
  rows, start = [], 0
  for end in ends:
    k = np.arange(start + 1, end + 1)[:, None]
    functions = np.concatenate([np.ones(k.shape), (k / end) ** kinds, (k / step) ** wanted], 1)
    factors = np.zeros(
      (len(kinds) + 2, len(used) + 1)
    )  # of the functions, in the C of each snapshot and of the wanted
    on = steps[used] >= end
    factors[np.where(on, 1 + kind, 0), np.arange(len(used))] = np.where(
      on, (end / steps[used]) ** powers[used], 1
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


def combine(weights: Iterable[float], trees: Iterable[Any]) -> Any:
  """sum_i weights_i trees_i in float64 on the host, then float32; holds one tree at a time beside the sum."""
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
  x = weights([t for t, _ in places], [width for _, width in places], step, sigma_rel)
  used = np.flatnonzero(x)
  return combine(x[used], (loads[i]() for i in used))
