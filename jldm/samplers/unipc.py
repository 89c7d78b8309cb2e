"""UniPC, Zhao et al. 2023 (2302.04867): a predictor, and a corrector that costs no evaluation.

Both are steps of jldm.samplers.exponential.  The predictor of order p interpolates the last p
estimates.  Once the next estimate is made, at r = 1, the corrector repeats the last step with all
p + 1.  The paper's B(h) cancels unless its weights are set to 1/2 instead of solved for:

  (1)  predictor of order 2:  B / (2 r) (x0_1 - x0);   corrector of order 1:  B / 2 (x0_1 - x0)
  (2)  bh1: B = h;   bh2: B = 1 - e^{-h}
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.trees import choice, pytree
from jldm.diffusion.process import Process, half_log_snr
from jldm.diffusion.target import Denoised
from jldm.samplers.clock import euler_step
from jldm.samplers.exponential import (
  add_correction,
  check_order,
  count_steps,
  count_usable,
  exponential_moments,
  lagrange_weights,
  log_snr_steps,
  weights_of_order,
)
from jldm.samplers.sample import Denoise

Array = jax.Array

GROWTHS = {"bh1": lambda h: h, "bh2": lambda h: -jnp.expm1(-h)}  # equation (2)


class UniState(NamedTuple):
  """The last estimate, the eps that belongs to it and to the corrected z, and older estimates."""

  z: Array  # [B, ...]
  x0: Array  # [B, ...]
  eps: Array  # [B, ...]
  past: tuple[Array, ...]  # K - 1 older estimates, newest first
  times: Array  # [K] of x0 and of those
  count: Array  # [] how many of the K belong to this path
  order: Array  # [] of the last step's predictor
  reached: Array  # [] the time that it went to
  left: Array  # [] steps to go


@pytree
@dataclasses.dataclass(frozen=True)
class UniPC:
  """UniPC-p of `order` p, of global order p + 1; one evaluation a step.

  There is no correction between pairs that do not adjoin.

  Raises:
    UserError: an order other than 1, 2, 3, or a solver_type other than "bh1" and "bh2".
  """

  order: int = choice(2)
  solver_type: str = choice("bh2")
  lower_order_final: bool = choice(False)

  def __post_init__(self):
    check_order(self.order, 3)
    if self.solver_type not in GROWTHS:
      raise UserError(f"solver_type={self.solver_type!r}; expected one of {sorted(GROWTHS)}")

  def init(self, process: Process, z: Array, pairs: Array) -> UniState:
    zeros, none = jnp.zeros_like(z), jnp.int32(0)
    times = jnp.zeros(self.order, pairs.dtype)
    return UniState(
      z, zeros, zeros, (zeros,) * (self.order - 1), times, none, none, pairs[0, 0], count_steps(pairs)
    )

  def step(
    self, process: Process, denoise: Denoise, state: UniState, t: Array, s: Array, keys: Array
  ) -> UniState:
    del keys
    x0, eps, _ = denoise(state.z, t)
    corrects = (state.count > 0) & (state.reached == t)
    z = jnp.where(corrects, self.correct(process, state, x0, t), state.z)
    sigma = process.sigma(t)
    # eps of the corrected z, with the estimate made before the correction
    eps = eps + (z - state.z) / jnp.where(sigma > 0, sigma, jnp.inf)
    h, r = log_snr_steps(process, state.times[: self.order - 1], t, s)
    order = 1 + count_usable(h, r, state.count)
    order = jnp.minimum(order, jnp.maximum(state.left, 1)) if self.lower_order_final else order
    weights = weights_of_order(self.predictor(h, list(r)), order, len(r))
    others = (state.x0, *state.past)[: self.order - 1]
    z = add_correction(process, euler_step(process, Denoised(x0, eps), s), x0, others, weights, s)
    times = jnp.concatenate([jnp.reshape(t, 1), state.times])[: self.order]
    return UniState(
      z, x0, eps, others, times, jnp.minimum(state.count + 1, self.order), order, s, state.left - 1
    )

  def correct(self, process: Process, state: UniState, x0: Array, t: Array) -> Array:
    """z_t corrected by the estimate x0 made there; unchanged if a log SNR is infinite."""
    last = state.times[0]
    h, r = log_snr_steps(process, state.times[1:], last, t)
    one = jnp.ones_like(h)
    _, *m = exponential_moments(h, 3)
    table = [[0.5 * GROWTHS[self.solver_type](h)]]
    table += [lagrange_weights([one, *r[: p - 1]], m) for p in range(2, self.order + 1)]
    weights = weights_of_order(table, jnp.maximum(state.order, 1), self.order)
    z = euler_step(process, Denoised(state.x0, state.eps), t)
    z = add_correction(process, z, state.x0, (x0, *state.past), weights, t)
    known = jnp.isfinite(half_log_snr(process, last)) & jnp.isfinite(h) & (h != 0)
    return jnp.where(known, z, state.z)

  def predictor(self, h: Array, r: list[Array]) -> list[list[Array]]:
    """Weights of the older estimates at r, one row for each order."""
    _, *m = exponential_moments(h, 2)
    rows = [[], [0.5 * GROWTHS[self.solver_type](h) / r[0]]] if r else [[]]
    return [*rows, lagrange_weights(r, m)] if len(r) == 2 else rows
