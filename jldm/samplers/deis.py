"""Adams-Bashforth steps on the probability flow in the clock Ratio, y = z / alpha, rho = sigma /
alpha, dy / drho = eps.

  (1)  z_s = alpha_s x0 + sigma_s eps + alpha_s (rho_s - rho_t) sum_i w_i (eps_i - eps)

DEIS, Zhang & Chen 2022 (2204.13902), its rho-AB variant (also known as LMS): the polynomial through
the last estimates of eps is integrated over rho.  The others have the weights of evenly spaced
steps, whatever the steps are:

  (2)  eps + sum_i w_i (eps_i - eps) = (3 eps - eps_1) / 2,  (23 eps - 16 eps_1 + 5 eps_2) / 12,
       (55 eps - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24

PNDM, Liu et al. 2022 (2202.09778), has two warm-ups.  iPNDM (Zhang & Chen) starts at lower order.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.trees import choice, pytree
from jldm.diffusion.process import Process
from jldm.diffusion.target import Denoised
from jldm.samplers.clock import Ratio, euler_step
from jldm.samplers.exponential import check_order, count_usable, lagrange_weights, weights_of_order
from jldm.samplers.sample import Denoise

Array = jax.Array

EVEN = [[], [-1 / 2], [-16 / 12, 5 / 12], [-59 / 24, 37 / 24, -9 / 24]]  # equation (2), a row for each order
MEANS = [1 / 2, 1 / 3, 1 / 4]  # moments of theta, theta^2, theta^3 over [0, 1]


class Slopes(NamedTuple):
  """What a multistep sampler of eps carries, for K estimates a step."""

  z: Array  # [B, ...]
  x0: Array  # [B, ...] the newest estimate
  past: tuple[Array, ...]  # K - 1 estimates of eps, newest first
  times: Array  # [K - 1] of those estimates
  count: Array  # [] how many of them belong to this path


def start_slopes(z: Array, pairs: Array, order: int) -> Slopes:
  zeros = jnp.zeros_like(z)
  return Slopes(z, zeros, (zeros,) * (order - 1), jnp.zeros(order - 1, pairs.dtype), jnp.int32(0))


def step_along(process: Process, denoised: Denoised, eps: Array, t: Array, s: Array) -> Array:
  """Equation (1): the step from t to s along `eps`, which is DDIM's if rho is infinite."""
  clock = Ratio()
  change = clock.scale(process, s) * (clock.tau(process, s) - clock.tau(process, t))
  return euler_step(process, denoised, s) + jnp.where(jnp.isfinite(change), change, 0) * (eps - denoised.eps)


def extend_slopes(
  process: Process, state: Slopes, denoised: Denoised, eps: Array, t: Array, s: Array
) -> Slopes:
  """The state after a step along `eps`."""
  z = step_along(process, denoised, eps, t, s)
  past = (denoised.eps, *state.past)[: len(state.past)]
  times = jnp.concatenate([jnp.reshape(t, 1), state.times])[: len(past)]
  return Slopes(z, denoised.x0, past, times, jnp.minimum(state.count + 1, len(past)))


def extrapolate(eps: Array, past: tuple[Array, ...], weights: Array) -> Array:
  """eps + sum_i w_i (eps_i - eps)."""
  return eps + sum((weight * (other - eps) for weight, other in zip(weights, past)), jnp.zeros_like(eps))


@pytree
@dataclasses.dataclass(frozen=True)
class DEIS:
  """Order 1 to 4, one evaluation a step; of lower order while there are fewer estimates.

  Raises:
    UserError: another order.
  """

  order: int = choice(3)

  def __post_init__(self):
    check_order(self.order, 4)

  def init(self, process: Process, z: Array, pairs: Array) -> Slopes:
    return start_slopes(z, pairs, self.order)

  def step(
    self, process: Process, denoise: Denoise, state: Slopes, t: Array, s: Array, keys: Array
  ) -> Slopes:
    del keys
    denoised = denoise(state.z, t)
    rho_t, rho_s, rho_past = (Ratio().tau(process, time) for time in (t, s, state.times))
    h = rho_s - rho_t
    r = (rho_past - rho_t) / h
    table = [lagrange_weights(list(r[: order - 1]), MEANS) for order in range(1, self.order + 1)]
    weights = weights_of_order(table, 1 + count_usable(h, r, state.count), len(r))
    return extend_slopes(process, state, denoised, extrapolate(denoised.eps, state.past, weights), t, s)


@pytree
@dataclasses.dataclass(frozen=True)
class PNDM:
  """Fourth order on steps that are even in sigma / alpha, second on others.  The warm-up is one of

  plms: the first step is Heun's, with two evaluations
  prk: the first three steps are Runge-Kutta's, with four evaluations each
  none: the first three steps are of order 1, 2, 3, with one evaluation each (iPNDM)

  Raises:
    UserError: another warm-up.
  """

  warmup: str = choice("plms")

  def __post_init__(self):
    if self.warmup not in WARMUPS:
      raise UserError(f"warmup={self.warmup!r}; expected one of {sorted(WARMUPS)}")

  def init(self, process: Process, z: Array, pairs: Array) -> Slopes:
    return start_slopes(z, pairs, 4)

  def step(
    self, process: Process, denoise: Denoise, state: Slopes, t: Array, s: Array, keys: Array
  ) -> Slopes:
    del keys
    denoised = denoise(state.z, t)
    steps, warm = WARMUPS[self.warmup]

    def multistep() -> Array:
      return extrapolate(denoised.eps, state.past, weights_of_order(EVEN, state.count + 1, 3))

    def warm_up() -> Array:
      ends_clean = process.sigma(s) <= 0
      return jax.lax.cond(ends_clean, lambda: denoised.eps, lambda: warm(process, denoise, denoised, t, s))

    eps = jax.lax.cond(state.count < steps, warm_up, multistep) if steps else multistep()
    return extend_slopes(process, state, denoised, eps, t, s)


def trapezoid(process: Process, denoise: Denoise, denoised: Denoised, t: Array, s: Array) -> Array:
  """The eps of Heun's step."""
  return 0.5 * (denoised.eps + denoise(euler_step(process, denoised, s), s).eps)


def runge_kutta(process: Process, denoise: Denoise, denoised: Denoised, t: Array, s: Array) -> Array:
  """The eps of PNDM's Runge-Kutta step, with its middle halfway in t."""
  middle = 0.5 * (t + s)
  second = denoise(step_along(process, denoised, denoised.eps, t, middle), middle).eps
  third = denoise(step_along(process, denoised, second, t, middle), middle).eps
  last = denoise(step_along(process, denoised, third, t, s), s).eps
  return (denoised.eps + 2 * second + 2 * third + last) / 6


WARMUPS = {"plms": (1, trapezoid), "prk": (3, runge_kutta), "none": (0, None)}  # steps, and their eps
