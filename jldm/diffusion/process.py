"""Forward processes: how data becomes noise.

  (1)  z_t = alpha(t) x0 + sigma(t) eps,   eps ~ N(0, I),   t in [0, 1]: 0 is data, 1 is noise
  (2)  log_snr(t) = 2 log(alpha(t) / sigma(t)),   time(log_snr(t)) = t

A process is a frozen dataclass of Python numbers, static under jit.  All schedule arithmetic keeps the dtype of t
(float32 in use, whatever the network's dtype; float64 in the tests of order).
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jldm.core.shapes import expand

Array = jax.Array


class Process(Protocol):
  """Signal and noise rates of (1), and the inverse (2) that grids and midpoints need."""

  def alpha(self, t: Array) -> Array: ...
  def sigma(self, t: Array) -> Array: ...
  def time(self, log_snr: Array) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Cosine:
  """Nichol & Dhariwal 2021 (2102.09672), eq. 17 in continuous time and without its offset.

  Both rates are sines: float32 cos(pi / 2) is negative, while these are exact at both ends.
  """

  def alpha(self, t: Array) -> Array:
    return jnp.sin(0.5 * jnp.pi * (1 - t))

  def sigma(self, t: Array) -> Array:
    return jnp.sin(0.5 * jnp.pi * t)

  def time(self, log_snr: Array) -> Array:
    return jnp.arctan(jnp.exp(-0.5 * log_snr)) * 2 / jnp.pi


@dataclasses.dataclass(frozen=True)
class Flow:
  """Rectified flow, Liu et al. 2022 (2209.03003), eq. 1: a straight line from data to noise."""

  def alpha(self, t: Array) -> Array:
    return 1 - t

  def sigma(self, t: Array) -> Array:
    return t

  def time(self, log_snr: Array) -> Array:
    return jax.nn.sigmoid(-0.5 * log_snr)


class Rates(NamedTuple):
  """The rates of (1) at a time, and their derivatives by t."""

  alpha: Array
  sigma: Array
  d_alpha: Array
  d_sigma: Array


def rates(process: Process, t: Array, like: Array) -> Rates:
  """All four rates at t [B] or [], shaped to broadcast against `like` [B, ...]; derivatives by jvp."""
  (alpha, d_alpha), (sigma, d_sigma) = (jax.jvp(f, (t,), (jnp.ones_like(t),)) for f in (process.alpha, process.sigma))
  return Rates(*(expand(rate, like) for rate in (alpha, sigma, d_alpha, d_sigma)))


def half_log_snr(process: Process, t: Array) -> Array:
  """log(alpha / sigma), Lu's lambda: +inf at the clean end and -inf at pure noise."""
  return jnp.log(process.alpha(t)) - jnp.log(process.sigma(t))
