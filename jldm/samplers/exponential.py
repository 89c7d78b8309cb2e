"""Exponential integrators of any order, from estimates of x0 at several noise levels.

With lambda = log(alpha / sigma) the solution of the flow is, Lu et al. 2022 (2211.01095), eq. 8,

  (1)  z_s = sigma_s / sigma_t z_t + sigma_s int_{lambda_t}^{lambda_s} e^lambda x0(lambda) dlambda

and with noise of strength eta (Gonzalez et al. 2023, 2305.14267; Xue et al. 2023, 2309.05019),
where h = lambda_s - lambda_t and kappa = (1 + eta) h, to

  (2)  z_s = alpha_s x0 + sigma_s (e^{-eta h} eps + (1 - e^{-2 eta h})^(1/2) eps') + alpha_s sum_i
       w_i (x0_i - x0)
  (3)  w_i = int_0^1 kappa e^{-kappa (1 - theta)} l_i(theta) dtheta

for an x0(theta) that is the polynomial through x0 at theta = 0 and x0_i at r_i = (lambda_i -
lambda_t) / h, with l_i its Lagrange polynomials.  So a step is DDIM's step and a correction.  It is
regular at both ends, where h is infinite and the correction is left out.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.keys import normal_like
from jldm.diffusion.process import Process, half_log_snr
from jldm.samplers.ddim import noise_kept

Array = jax.Array
TERMS = 16  # of the series of a moment: the rest is below 1e-16


class History(NamedTuple):
  """The state of a multistep sampler whose steps use K estimates: the K - 1 older ones, and their times."""

  z: Array  # [B, ...]
  x0: Array  # [B, ...] the newest estimate
  past: tuple[Array, ...]  # K - 2 older ones, newest first
  times: Array  # [K - 1] of all of them
  count: Array  # [] how many of them belong to this path
  left: Array  # [] steps that are left

  def estimates(self) -> tuple[Array, ...]:
    """All K - 1 estimates, newest first."""
    return (self.x0, *self.past)[: len(self.times)]


def check_order(order: int, highest: int) -> None:
  if order not in range(1, highest + 1):
    raise UserError(f"order={order}; expected 1 to {highest}")


def start_history(z: Array, pairs: Array, order: int) -> History:
  """An empty history, for steps of `order` = K estimates."""
  zeros = jnp.zeros_like(z)
  return History(
    z, zeros, (zeros,) * (order - 2), jnp.zeros(order - 1, pairs.dtype), jnp.int32(0), count_steps(pairs)
  )


def count_steps(pairs: Array) -> Array:
  """The number of pairs [N, 2] with t != s."""
  return jnp.sum(pairs[:, 0] != pairs[:, 1], dtype=jnp.int32)


def extend_history(state: History, z: Array, x0: Array, t: Array) -> History:
  """The state after a step from t to z, with the estimate x0 made at t."""
  times = jnp.concatenate([jnp.reshape(t, 1), state.times])[: len(state.times)]
  past = (state.x0, *state.past)[: len(state.past)]
  return History(z, x0, past, times, jnp.minimum(state.count + 1, len(times)), state.left - 1)


def log_snr_steps(process: Process, times: Array, t: Array, s: Array) -> tuple[Array, Array]:
  """h [], and r_i of times [K - 1]; not finite at the ends."""
  lambda_t, lambda_s = half_log_snr(process, t), half_log_snr(process, s)
  h = lambda_s - lambda_t
  return h, (half_log_snr(process, times) - lambda_t) / h


def count_usable(h: Array, r: Array, count: Array) -> Array:
  """How many of the r [K - 1], newest first, a step may use.

  It may use all up to the first that is not finite, is 0, is equal to a newer one, or does not
  belong to this path.
  """
  place = jnp.arange(len(r))
  apart = jnp.all((r[:, None] != r) | (place[:, None] <= place), 1)
  legal = jnp.isfinite(r) & (r != 0) & apart & (place < count) & jnp.isfinite(h)
  return jnp.sum(jnp.cumprod(legal.astype(jnp.int32)), dtype=jnp.int32)


def noisy_step(process: Process, t: Array, s: Array, h: Array, eta: Array) -> Array:
  """kappa = (1 + eta) h.  Upward (s > t) there is no noise, so eta counts as 0."""
  return (1 + jnp.where(s < t, eta, 0)) * h


def exponential_moments(kappa: Array, count: int) -> list[Array]:
  """int_0^1 kappa e^{-kappa (1 - theta)} theta^j dtheta for j = 0 … count.

  m_j = 1 - j / kappa m_{j-1}.  For small kappa, where that cancels, m_j = kappa j! sum_n (-kappa)^n /
  (n + j + 1)!.
  """
  small = jnp.where(jnp.abs(kappa) < 1, kappa, 0)
  large = jnp.where(jnp.abs(kappa) < 1, 1, kappa)
  closed, out = -jnp.expm1(-large), []
  for j in range(count + 1):
    closed = closed if j == 0 else 1 - j / large * closed
    series = sum((-small) ** n * (math.factorial(j) / math.factorial(n + j + 1)) for n in range(TERMS))
    out.append(jnp.where(jnp.abs(kappa) < 1, small * series, closed))
  return out


def lagrange_weights(r: list[Array], moments: list[Array]) -> list[Array]:
  """Equation (3): the weights w_i of the nodes r, from the moments m_1, m_2, … of the measure."""
  weights = []
  for i, node in enumerate(r):
    polynomial = [1.0]  # the product of theta - r_j over the other nodes, lowest power first
    scale = node  # its value at the node, times the node
    for other in r[:i] + r[i + 1 :]:
      polynomial = [low - other * high for low, high in zip([0.0, *polynomial], [*polynomial, 0.0])]
      scale = scale * (node - other)
    weights.append(sum(c * m for c, m in zip(polynomial, moments)) / scale)
  return weights


def weights_of_order(table: list[list[Array]], order: Array, width: int) -> Array:
  """The weights [width] of one order, from a table with one row per order from 1."""
  return jnp.stack([jnp.array([*row, *[0.0] * (width - len(row))]) for row in table])[order - 1]


def first_order_step(
  process: Process, x0: Array, eps: Array, t: Array, s: Array, eta: Array | float, keys: Array
) -> Array:
  """(2) without its sum: DDIM, with noise of strength eta."""
  old = noise_kept(process, t, s) ** eta
  fresh = jnp.sqrt((1 - old) * (1 + old))
  return process.alpha(s) * x0 + process.sigma(s) * (old * eps + fresh * normal_like(keys, eps))


def add_correction(
  process: Process, z: Array, x0: Array, others: tuple[Array, ...], weights: Array, s: Array
) -> Array:
  """z with the sum of (2)."""
  for weight, other in zip(weights, others):
    z = z + process.alpha(s) * weight * (other - x0)
  return z
