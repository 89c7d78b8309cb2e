"""The distribution of training times.

Every distribution is a map of the quantile u = (shift + row / B) mod 1: one uniform shift a step,
then evenly spaced strata, which lowers the variance of the loss (VDM, Kingma et al. 2021,
2107.00630, appendix I.1).  Its density at t is 1 / (dt / du).

If each part of an example has its own time, the strata of the parts must not align: if both followed
the row, their quantiles would differ by a constant.  So each part uses the stratum (multiplier row)
mod B in place of row.  The multiplier is a prime above any B, hence coprime to it, so this permutes
the rows and needs no other row.  Each part's key draws it anew in each step.  The quantiles of two
parts are then a rank-1 lattice that changes from step to step.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jldm.diffusion.process import Process

Array = jax.Array


LARGEST_BATCH = 2**16


def primes_above(low: int, count: int) -> np.ndarray:
  """The first `count` primes from `low` on, uint32 [count]."""
  numbers = np.arange(low, low + 32 * count)
  divisors = np.arange(2, int(numbers[-1] ** 0.5) + 1)
  return numbers[(numbers[:, None] % divisors != 0).all(1)][:count].astype(np.uint32)


MULTIPLIERS = primes_above(LARGEST_BATCH, 512)


def quantiles(key: Array, stratum: Array, row: Array | None = None) -> Array:
  """Stratified uniform numbers in (0, 1): key [], stratum [B] = row / B of the global batch -> [B].

  With row int [B] the key also permutes the strata.  That is for parts with their own times, each
  with its own key, and for global batches of at most 65,536 rows.  Drawn numbers are multiples of
  2^-23; a 0, which could be an infinite noise level, becomes 2^-24.
  """
  if row is not None:
    key, key_multiplier = jax.random.split(key)
    stratum = permute_strata(key_multiplier, stratum, row)
  return jnp.maximum((jax.random.uniform(key, (), jnp.float32) + stratum) % 1.0, 2.0**-24)


def permute_strata(key: Array, stratum: Array, row: Array) -> Array:
  """(multiplier row mod B) / B, with B = row / stratum: key [], stratum [B], row int [B] -> [B].

  Row 0 stays.
  """
  size = jnp.where(row > 0, jnp.round(row / jnp.where(row > 0, stratum, 1)), 1).astype(jnp.uint32)
  multiplier = jax.random.choice(key, jnp.asarray(MULTIPLIERS))
  place = (multiplier % size) * row.astype(jnp.uint32) % size
  return (place / size).astype(stratum.dtype)


class Times(Protocol):
  """The inverse of a distribution function: u [B] in (0, 1) -> t [B]."""

  def inverse_cdf(self, process: Process, u: Array) -> Array: ...


def sample_times(
  times: Times, process: Process, key: Array, stratum: Array, row: Array | None = None
) -> tuple[Array, Array]:
  """key [], stratum [B] -> times t [B] and dt / du [B], one over their density.

  With row int [B] the strata are permuted.
  """
  u = quantiles(key, stratum, row)
  return jax.jvp(lambda u: times.inverse_cdf(process, u), (u,), (jnp.ones_like(u),))


@dataclasses.dataclass(frozen=True)
class Uniform:
  """t ~ U[0, 1)."""

  def inverse_cdf(self, process: Process, u: Array) -> Array:
    del process
    return u


@dataclasses.dataclass(frozen=True)
class At:
  """The time t [] for all, with the density that it has among uniform times."""

  t: Array

  def inverse_cdf(self, process: Process, u: Array) -> Array:
    del process
    return self.t + (u - jax.lax.stop_gradient(u))


@dataclasses.dataclass(frozen=True)
class LogitNormal:
  """logit(t) ~ N(logit_mean, logit_std^2): Esser et al. 2024 (2403.03206), eq. 19."""

  logit_mean: float = 0.0
  logit_std: float = 1.0

  def inverse_cdf(self, process: Process, u: Array) -> Array:
    del process
    return jax.nn.sigmoid(self.logit_mean + self.logit_std * jax.scipy.special.ndtri(u))


@dataclasses.dataclass(frozen=True)
class LogNormalSigma:
  """log(sigma / alpha) ~ N(p_mean, p_std^2): Karras et al. 2022 (2206.00364), table 1, for data of std 0.5.

  For data of another std add log(std / 0.5) to p_mean: -0.5 for standardised latents.
  """

  p_mean: float = -1.2
  p_std: float = 1.2

  def inverse_cdf(self, process: Process, u: Array) -> Array:
    return process.time(-2 * (self.p_mean + self.p_std * jax.scipy.special.ndtri(u)))
