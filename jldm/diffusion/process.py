"""Forward processes: how data becomes noise.

  (1)  z_t = alpha(t) x0 + sigma(t) eps,   eps ~ N(0, I),   t in [0, 1]: 0 is data, 1 is noise
  (2)  log_snr(t) = 2 log(alpha(t) / sigma(t)),   time(log_snr(t)) = t

A process is a frozen dataclass of Python numbers, static under jit.  All schedule arithmetic keeps
the dtype of t (float32 in use, whatever the network's dtype; float64 in the tests of order).
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
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


@dataclasses.dataclass(frozen=True)
class LinearVP:
  """The variance-preserving process of Song et al. 2021 (2011.13456), eq. 33, with beta(t) linear from
  `beta_min` to `beta_max`.

  log alpha(t) = -(beta_min t + (beta_max - beta_min) t^2 / 2) / 2.  sigma is computed by expm1, which
  keeps it exact near the data.
  """

  beta_min: float = 0.1
  beta_max: float = 20.0

  def log_alpha(self, t: Array) -> Array:
    return -0.5 * t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

  def alpha(self, t: Array) -> Array:
    return jnp.exp(self.log_alpha(t))

  def sigma(self, t: Array) -> Array:
    return jnp.sqrt(-jnp.expm1(2 * self.log_alpha(t)))

  def time(self, log_snr: Array) -> Array:
    area = 2 * jax.nn.softplus(-log_snr)  # -2 log alpha^2, solved for t without cancellation
    return area / (self.beta_min + jnp.sqrt(self.beta_min**2 + (self.beta_max - self.beta_min) * area))


@dataclasses.dataclass(frozen=True)
class EDM:
  """Karras et al. 2022 (2206.00364): alpha = 1 and sigma = sigma_max t^rho, so that even times are their
  eq. 5 with sigma_min 0.
  """

  sigma_max: float = 80.0
  rho: float = 7.0

  def alpha(self, t: Array) -> Array:
    return jnp.ones_like(t)

  def sigma(self, t: Array) -> Array:
    return self.sigma_max * t**self.rho

  def time(self, log_snr: Array) -> Array:
    return jnp.exp(-(0.5 * log_snr + math.log(self.sigma_max)) / self.rho)


@dataclasses.dataclass(frozen=True)
class LinearBetas:
  """DDPM, Ho et al. 2020 (2006.11239), section 4: evenly spaced betas."""

  beta_start: float = 1e-4
  beta_end: float = 0.02
  num_train_timesteps: int = 1000

  def betas(self) -> np.ndarray:
    """-> float64 [num_train_timesteps]."""
    return np.linspace(self.beta_start, self.beta_end, self.num_train_timesteps)


@dataclasses.dataclass(frozen=True)
class ScaledLinearBetas:
  """Latent diffusion and Stable Diffusion, Rombach et al. 2022 (2112.10752): evenly spaced roots of betas."""

  beta_start: float = 0.00085
  beta_end: float = 0.012
  num_train_timesteps: int = 1000

  def betas(self) -> np.ndarray:
    """-> float64 [num_train_timesteps]."""
    return np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_timesteps) ** 2


@dataclasses.dataclass(frozen=True)
class CosineBetas:
  """Nichol & Dhariwal 2021 (2102.09672), eq. 17, betas at most `max_beta`."""

  offset: float = 0.008
  max_beta: float = 0.999
  num_train_timesteps: int = 1000

  def betas(self) -> np.ndarray:
    """-> float64 [num_train_timesteps]."""
    squared = (
      np.cos((np.linspace(0, 1, self.num_train_timesteps + 1) + self.offset) / (1 + self.offset) * np.pi / 2)
      ** 2
    )
    return np.minimum(1 - squared[1:] / squared[:-1], self.max_beta)


@dataclasses.dataclass(frozen=True, repr=False)
class Betas:
  """Betas that the caller gives.

  Raises:
    UserError: there are none, or one is outside (0, 1].
  """

  trained_betas: tuple[float, ...]

  def __post_init__(self):
    illegal = [beta for beta in self.trained_betas if not 0 < beta <= 1]
    if not self.trained_betas or illegal:
      raise UserError(
        f"{len(self.trained_betas)} betas, of which {illegal[:3]}; "
        "expected at least one, each above 0 and at most 1"
      )

  def __repr__(self) -> str:
    return (
      f"Betas({self.trained_betas if len(self.trained_betas) < 5 else f'{self.num_train_timesteps} values'})"
    )

  @property
  def num_train_timesteps(self) -> int:
    return len(self.trained_betas)

  def betas(self) -> np.ndarray:
    """-> float64 [num_train_timesteps]."""
    return np.asarray(self.trained_betas, np.float64)


@dataclasses.dataclass(frozen=True)
class Discrete:
  """A chain of T betas in continuous time: alpha^2((i + 1) / T) is the product of 1 - beta up to i,
  and t = 0 is clean.

  Between knots the angle atan(sigma / alpha) is linear, so that both rates are sines, regular at
  both ends. `rescale_betas_zero_snr` shifts and scales the alphas until the last is 0: Lin et al. 2024
  (2305.08891), algorithm 1.

  Raises:
    UserError: rescale_betas_zero_snr of fewer than two betas.
  """

  beta_schedule: Any = ScaledLinearBetas()
  rescale_betas_zero_snr: bool = False

  def __post_init__(self):
    if self.rescale_betas_zero_snr and self.num_train_timesteps < 2:
      raise UserError(f"rescale_betas_zero_snr of {self.num_train_timesteps} betas; expected at least 2")

  @property
  def num_train_timesteps(self) -> int:
    return self.beta_schedule.num_train_timesteps

  @functools.cache  # noqa: B019  a frozen dataclass of some numbers
  def angles(self) -> tuple[np.ndarray, np.ndarray]:
    """2 / pi times the angle at the knots 0, 1 / T, ... 1, and 1 minus that.

    The second is small near noise, where a difference from 1 would lose digits.
    """
    alpha = np.sqrt(np.cumprod(1 - self.beta_schedule.betas()))
    if self.rescale_betas_zero_snr:
      alpha = alpha[0] * (alpha - alpha[-1]) / (alpha[0] - alpha[-1])
    alpha = np.concatenate([[1.0], alpha])
    sigma = np.sqrt((1 - alpha) * (1 + alpha))
    return np.arctan2(sigma, alpha) * 2 / np.pi, np.arctan2(alpha, sigma) * 2 / np.pi

  def interpolate(self, t: Array, knots: np.ndarray) -> Array:
    """The values [T + 1] at the knots, interpolated linearly at t of any shape."""
    place = t * self.num_train_timesteps
    below = jnp.clip(jnp.floor(place), 0, self.num_train_timesteps - 1)
    knots, i = jnp.asarray(knots, t.dtype), below.astype(jnp.int32)
    return knots[i] + (place - below) * (knots[i + 1] - knots[i])

  def alpha(self, t: Array) -> Array:
    return jnp.sin(0.5 * jnp.pi * self.interpolate(t, self.angles()[1]))

  def sigma(self, t: Array) -> Array:
    return jnp.sin(0.5 * jnp.pi * self.interpolate(t, self.angles()[0]))

  def time(self, log_snr: Array) -> Array:
    angle = jnp.arctan(jnp.exp(-0.5 * log_snr)) * 2 / jnp.pi
    return jnp.interp(
      angle,
      jnp.asarray(self.angles()[0], angle.dtype),
      jnp.linspace(0, 1, self.num_train_timesteps + 1, dtype=angle.dtype),
    )


@dataclasses.dataclass(frozen=True)
class Shifted:
  """A process in another time, shift t / (1 + (shift - 1) t); a shift above 1 spends more of it on noise.

  On Flow this divides the SNR by shift^2 everywhere: Esser et al. 2024 (2403.03206), eq. 23.
  """

  process: Any = Flow()
  shift: float = 3.0

  def inner(self, t: Array) -> Array:
    return self.shift * t / (1 + (self.shift - 1) * t)

  def alpha(self, t: Array) -> Array:
    return self.process.alpha(self.inner(t))

  def sigma(self, t: Array) -> Array:
    return self.process.sigma(self.inner(t))

  def time(self, log_snr: Array) -> Array:
    u = self.process.time(log_snr)
    return u / (self.shift - (self.shift - 1) * u)


def timestep(process: Process, t: Array) -> Array:
  """The number that a network is given for time t.

  It is t itself, or the inner time of a shifted process.  A chain of T betas has i / T at its knot
  (i + 1) / T, since published networks count timesteps from 0.
  """
  if isinstance(process, Shifted):
    return timestep(process.process, process.inner(t))
  return t - 1 / process.num_train_timesteps if isinstance(process, Discrete) else t


def dimension_shift(dimension: int, base_dimension: int = 4096) -> float:
  """The shift sqrt(dimension / base_dimension) for latents of `dimension` values.

  More values reveal more of the same picture at equal noise, so hiding it takes more noise: Zheng et
  al. 2025 (2510.11690).
  """
  return math.sqrt(dimension / base_dimension)


class Rates(NamedTuple):
  """The rates of (1) at a time, and their derivatives by t."""

  alpha: Array
  sigma: Array
  d_alpha: Array
  d_sigma: Array


def rates(process: Process, t: Array, like: Array) -> Rates:
  """All four rates at t [B] or [], shaped to broadcast against `like` [B, ...]; derivatives by jvp."""
  (alpha, d_alpha), (sigma, d_sigma) = (
    jax.jvp(f, (t,), (jnp.ones_like(t),)) for f in (process.alpha, process.sigma)
  )
  return Rates(*(expand(rate, like) for rate in (alpha, sigma, d_alpha, d_sigma)))


def half_log_snr(process: Process, t: Array) -> Array:
  """log(alpha / sigma), Lu's lambda: +inf at the clean end and -inf at pure noise."""
  return jnp.log(process.alpha(t)) - jnp.log(process.sigma(t))
