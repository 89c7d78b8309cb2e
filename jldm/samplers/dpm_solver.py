"""DPM-Solver++, Lu et al. 2022 (2211.01095), with and without noise (SDE-DPM-Solver++, its appendix).

Algorithm 2, DPM-Solver++(2M), steps from t to s by the estimate x0 made at t and the one before it,
x0', made at t'.  With lambda = log(alpha / sigma),

  (1)  h = lambda_s - lambda_t,   r = (lambda_t - lambda_t') / h
  (2)  D = (1 + 1 / (2 r)) x0 - 1 / (2 r) x0'
  (3)  z_s = sigma_s / sigma_t z_t - alpha_s (e^{-h} - 1) D
           = alpha_s x0 + sigma_s eps + alpha_s (1 - e^{-h}) (D - x0)

The second line of (3) is what runs: it is regular at sigma = 0, and without its last term it is DDIM.

The other orders are in the notation of jldm.samplers.exponential: x0_1, x0_2 are the older estimates,
r_1, r_2 where they stand (r_1 = -r), and m_0 = 1 - e^{-kappa}, m_1, m_2 the moments.  In place of
(1 - e^{-h}) (D - x0) they have

  (4)  second order, "midpoint":  m_0 / (2 r_1) (x0_1 - x0)
       second order, "heun":      m_1 / r_1 (x0_1 - x0)
  (5)  third order:               m_1 D_1 + m_2 / 2 D_2

with D_1 the slope and D_2 the second divided difference of x0 at t.  Taylor's formula has m_2 D_2, not
m_2 / 2 D_2.  So the third order of the authors' code is of second order; `exact_d2` makes it third.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.trees import choice, pytree
from jldm.diffusion.process import Process, half_log_snr
from jldm.diffusion.target import Denoised
from jldm.samplers.exponential import (
  History,
  add_correction,
  check_order,
  count_usable,
  exponential_moments,
  extend_history,
  first_order_step,
  lagrange_weights,
  log_snr_steps,
  noisy_step,
  start_history,
  weights_of_order,
)
from jldm.samplers.sample import Denoise

Array = jax.Array

SOLVER_TYPES = ("midpoint", "heun")


def check_solver_type(solver_type: str) -> None:
  if solver_type not in SOLVER_TYPES:
    raise UserError(f"solver_type={solver_type!r}; expected one of {list(SOLVER_TYPES)}")


@pytree
@dataclasses.dataclass(frozen=True)
class DPMSolverPP:
  """The multistep solver, algorithm 2 by default; one evaluation a step.

  eta (traced) is the strength of the noise: 0 is the flow, 1 SDE-DPM-Solver++.  A step is of lower
  order if there are fewer estimates, if a log SNR is infinite and, with `lower_order_final`, if
  fewer steps are left.

  Raises:
    UserError: an order other than 1, 2, 3, or another solver_type.
  """

  order: int = choice(2)
  eta: float = 0.0
  solver_type: str = choice("midpoint")
  exact_d2: bool = choice(False)
  lower_order_final: bool = choice(False)

  def __post_init__(self):
    check_order(self.order, 3)
    check_solver_type(self.solver_type)

  def init(self, process: Process, z: Array, pairs: Array) -> History:
    return start_history(z, pairs, self.order)

  def step(
    self, process: Process, denoise: Denoise, state: History, t: Array, s: Array, keys: Array
  ) -> History:
    x0, eps, _ = denoise(state.z, t)
    z = first_order_step(process, x0, eps, t, s, self.eta, keys)
    is_2m = self.order == 2 and self.solver_type == "midpoint"
    correction = self.correction_2m if is_2m else self.correction
    return extend_history(state, z + process.alpha(s) * correction(process, state, x0, t, s), x0, t)

  def correction_2m(self, process: Process, state: History, x0: Array, t: Array, s: Array) -> Array:
    """(1 - e^{-h}) (D - x0) of algorithm 2, by (1) and (2); 0 in the first step, which is DDIM."""
    t_before, x0_before = state.times[0], state.x0
    h = half_log_snr(process, s) - half_log_snr(process, t)
    r = (half_log_snr(process, t) - half_log_snr(process, t_before)) / h
    usable = (state.count > 0) & jnp.isfinite(h) & jnp.isfinite(r) & (r != 0)
    if self.lower_order_final:
      usable &= state.left > 1
    growth = -jnp.expm1(-noisy_step(process, t, s, h, self.eta))  # 1 - e^{-h} if eta is 0
    weight = jnp.where(usable, growth / (2 * jnp.where(usable, r, 1)), 0)
    return weight * (x0 - x0_before)

  def correction(self, process: Process, state: History, x0: Array, t: Array, s: Array) -> Array:
    """(4) or (5), of any order."""
    h, r = log_snr_steps(process, state.times, t, s)
    order = 1 + count_usable(h, r, state.count)
    if self.lower_order_final:
      order = jnp.minimum(order, jnp.maximum(state.left, 1))
    table = self.table(noisy_step(process, t, s, h, self.eta), list(r))
    weights = weights_of_order(table, order, len(r))
    differences = [weight * (older - x0) for weight, older in zip(weights, state.estimates())]
    return sum(differences, jnp.zeros_like(x0))

  def table(self, kappa: Array, r: list[Array]) -> list[list[Array]]:
    """Weights of the older estimates at r, one row for each order."""
    m0, m1, m2 = exponential_moments(kappa, 2)
    rows = [[], [(m1 if self.solver_type == "heun" else 0.5 * m0) / r[0]]] if r else [[]]
    if len(r) == 2:
      rows.append(lagrange_weights(r, [m1, m2 if self.exact_d2 else 0.5 * m2]))
    return rows


class Group(NamedTuple):
  """A group of steps from one place: its first estimate, and the newest one since."""

  z: Array  # [B, ...]
  x0: Array  # [B, ...] the newest estimate, made at time t
  t: Array  # []
  first: Denoised  # the estimate [B, ...] at the group's first time
  first_t: Array  # []
  count: Array  # [] steps of the group so far; 0 starts a group


@pytree
@dataclasses.dataclass(frozen=True)
class DPMSolverPPSingle:
  """The singlestep solver, algorithm 1: groups of `order` steps, of order 1, 2, 3, each from the first
  time of its group; one evaluation a step.

  The times of a group are its nodes.  If they are even in log SNR, they are the paper's r = 1/2, or
  1/3 and 2/3.  The third order uses two estimates as in the paper, or all three with solver_type
  "heun".

  Raises:
    UserError: an order other than 1, 2, 3, or another solver_type.
  """

  order: int = choice(2)
  eta: float = 0.0
  solver_type: str = choice("midpoint")

  def __post_init__(self):
    check_order(self.order, 3)
    check_solver_type(self.solver_type)

  def init(self, process: Process, z: Array, pairs: Array) -> Group:
    zeros = jnp.zeros_like(z)
    return Group(z, zeros, pairs[0, 0], Denoised(zeros, zeros), pairs[0, 0], jnp.int32(0))

  def step(self, process: Process, denoise: Denoise, state: Group, t: Array, s: Array, keys: Array) -> Group:
    newest = denoise(state.z, t)._replace(variance=None)
    h, r = log_snr_steps(process, jnp.stack([t, state.t]), state.first_t, s)
    phase = jnp.minimum(count_usable(h, r, state.count), state.count)
    phase = jnp.where(phase < state.count, 0, phase)  # a step that its group cannot make starts another
    starts = phase == 0
    first = jax.tree.map(lambda new, old: jnp.where(starts, new, old), newest, state.first)
    first_t = jnp.where(starts, t, state.first_t)
    table = self.table(noisy_step(process, first_t, s, h, self.eta), list(r))[: self.order]
    weights = weights_of_order(table, phase + 1, 2)
    z = first_order_step(process, first.x0, first.eps, first_t, s, self.eta, keys)
    z = add_correction(process, z, first.x0, (newest.x0, state.x0), weights, s)
    return Group(z, newest.x0, t, first, first_t, (phase + 1) % self.order)

  def table(self, kappa: Array, r: list[Array]) -> list[list[Array]]:
    """Weights of the estimates since the first, newest first, one row for each order."""
    heun = self.solver_type == "heun"
    m0, m1, m2 = exponential_moments(kappa, 2)
    third = lagrange_weights(r, [m1, m2]) if heun else [m1 / r[0]]
    return [[], [(m1 if heun else 0.5 * m0) / r[0]], third]
