"""DPM-Solver++, Lu et al. 2022 (2211.01095), with and without noise (its appendix: SDE-DPM-Solver++).

In the notation of jldm.samplers.exponential, with E = m_0 = 1 - e^{-kappa}, the published corrections are

  (1)  second order, "midpoint":  E / (2 r) (x0_1 - x0)
       second order, "heun":      m_1 / r (x0_1 - x0)
  (2)  third order:               m_1 D_1 + m_2 / 2 D_2

with D_1 and D_2 the slope and the second divided difference of x0 over theta at 0.  Taylor's
formula has m_2 D_2: as its authors' code has it a third-order multistep solver is of second order,
and of third with `exact_d2`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.trees import choice, pytree
from jldm.diffusion.process import Process
from jldm.diffusion.target import Denoised
from jldm.samplers.exponential import (
  History,
  begin,
  check_order,
  chosen,
  corrected,
  first_order,
  follow,
  growth,
  interpolation,
  moments,
  nodes,
  usable,
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
  """Multistep: algorithm 2 for order 2; one evaluation a step.

  eta (traced) is the strength of the noise: 0 is the flow, 1 SDE-DPM-Solver++.  A step is of lower
  order while there are fewer estimates, where a log SNR is infinite and, with `lower_order_final`,
  where fewer steps are left.

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
    return begin(z, pairs, self.order)

  def step(
    self, process: Process, denoise: Denoise, state: History, t: Array, s: Array, keys: Array
  ) -> History:
    x0, eps, _ = denoise(state.z, t)
    h, r = nodes(process, state.times, t, s)
    order = 1 + usable(h, r, state.count)
    order = jnp.minimum(order, jnp.maximum(state.left, 1)) if self.lower_order_final else order
    weights = chosen(self.table(growth(process, t, s, h, self.eta), list(r)), order, len(r))
    z = first_order(process, x0, eps, t, s, self.eta, keys)
    return follow(state, corrected(process, z, x0, state.estimates(), weights, s), x0, t)

  def table(self, kappa: Array, r: list[Array]) -> list[list[Array]]:
    """Weights of the older estimates at r, a row for each order."""
    m0, m1, m2 = moments(kappa, 2)
    rows = [[], [(m1 if self.solver_type == "heun" else 0.5 * m0) / r[0]]] if r else [[]]
    if len(r) == 2:
      rows.append(interpolation(r, [m1, m2 if self.exact_d2 else 0.5 * m2]))
    return rows


class Group(NamedTuple):
  """A group of steps from one place: what was found there, and the newest estimate since."""

  z: Array  # [B, ...]
  x0: Array  # [B, ...] the newest estimate, made at time t
  t: Array  # []
  anchor: Denoised  # what was found where the group began, at time `began`
  began: Array  # []
  count: Array  # [] steps of the group so far; 0 begins one


@pytree
@dataclasses.dataclass(frozen=True)
class DPMSolverPPSingle:
  """Singlestep: groups of `order` steps, of order 1, 2, 3, each from the beginning of its group; one
    evaluation a step.

  The times between which a group goes are its nodes: even ones in log SNR are the paper's r = 1/2,
  or 1/3 and 2/3.  The third order has the paper's two estimates, or all three with solver_type "heun".

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
    found = denoise(state.z, t)._replace(variance=None)
    h, r = nodes(process, jnp.stack([t, state.t]), state.began, s)
    phase = jnp.minimum(usable(h, r, state.count), state.count)
    phase = jnp.where(phase < state.count, 0, phase)  # what its group cannot do begins another
    fresh = phase == 0
    anchor = jax.tree.map(lambda new, old: jnp.where(fresh, new, old), found, state.anchor)
    began = jnp.where(fresh, t, state.began)
    weights = chosen(self.table(growth(process, began, s, h, self.eta), list(r))[: self.order], phase + 1, 2)
    z = first_order(process, anchor.x0, anchor.eps, began, s, self.eta, keys)
    z = corrected(process, z, anchor.x0, (found.x0, state.x0), weights, s)
    return Group(z, found.x0, t, anchor, began, (phase + 1) % self.order)

  def table(self, kappa: Array, r: list[Array]) -> list[list[Array]]:
    """Weights of the estimates since the beginning, newest first, a row for each order."""
    m0, m1, m2 = moments(kappa, 2)
    third = interpolation(r, [m1, m2]) if self.solver_type == "heun" else [m1 / r[0]]
    return [[], [(m1 if self.solver_type == "heun" else 0.5 * m0) / r[0]], third]
