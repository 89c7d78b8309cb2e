"""Where in time the training examples stand.

Every distribution is a map of the quantile u = (shift + row / B) mod 1: one uniform shift a step, then evenly spaced
strata, which lowers the variance of the loss (VDM, Kingma et al. 2021, 2107.00630, appendix I.1).  Its density at t is
1 / (dt / du).
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from jldm.diffusion.process import Process

Array = jax.Array


def quantiles(key: Array, stratum: Array) -> Array:
  """Stratified uniform numbers in (0, 1): key [], stratum [B] = row / B of the global batch -> [B].

  Drawn numbers are multiples of 2^-23; a 0 would be an infinite noise level to some, and becomes half of the least.
  """
  return jnp.maximum((jax.random.uniform(key) + stratum) % 1.0, 2.0**-24)


class Times(Protocol):
  """The inverse of a distribution function: u [B] in (0, 1) -> t [B]."""

  def at(self, process: Process, u: Array) -> Array: ...


def draw(times: Times, process: Process, key: Array, stratum: Array) -> tuple[Array, Array]:
  """key [], stratum [B] -> times t [B] and dt / du [B], one over their density."""
  u = quantiles(key, stratum)
  return jax.jvp(lambda u: times.at(process, u), (u,), (jnp.ones_like(u),))


@dataclasses.dataclass(frozen=True)
class Uniform:
  """t ~ U[0, 1)."""

  def at(self, process: Process, u: Array) -> Array:
    del process
    return u


@dataclasses.dataclass(frozen=True)
class LogitNormal:
  """logit(t) ~ N(mean, std^2): Esser et al. 2024 (2403.03206), eq. 19."""

  mean: float = 0.0
  std: float = 1.0

  def at(self, process: Process, u: Array) -> Array:
    del process
    return jax.nn.sigmoid(self.mean + self.std * jax.scipy.special.ndtri(u))


@dataclasses.dataclass(frozen=True)
class LogNormalSigma:
  """log(sigma / alpha) ~ N(mean, std^2): Karras et al. 2022 (2206.00364), table 1, for data of std 0.5.

  For data of another std add log(std / 0.5) to the mean: -0.5 for standardised latents.
  """

  mean: float = -1.2
  std: float = 1.2

  def at(self, process: Process, u: Array) -> Array:
    return process.time(-2 * (self.mean + self.std * jax.scipy.special.ndtri(u)))
