"""Grids of times, which become the pairs (t, s) that a sampler steps along.

Grids are made before anything is compiled, in JAX's default float type.  A "ratio" is sigma / alpha.
If alpha = 0 at t = 1, the ratio is infinite there, and grids of ratios begin at 80.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.diffusion.process import Discrete, Process
from jldm.samplers.pairs import adjacent_pairs

Array = jax.Array
ALIGNED = {  # Sabour et al. 2024 (2404.14507), table 3: ratios at the ends of ten steps
  "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
  "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
  "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def uniform(steps: int, start: float = 1.0, end: float = 0.0) -> Array:
  """steps + 1 evenly spaced times from `start` to `end`.

  Raises:
    UserError: steps < 1.
  """
  check_steps(steps)
  return jnp.linspace(start, end, steps + 1)


def shifted(steps: int, shift: float = 3.0, end: float | None = None) -> Array:
  """shift u / (1 + (shift - 1) u) at `steps` evenly spaced u from 1 to `end` (1 / steps by default), then 0.

  Esser et al. 2024 (2403.03206), eq. 23: a shift above 1 spends more steps on noise.  diffusers'
  FlowMatchEuler with its own timesteps of a chain of T shifts twice: its `end` is the shifted 1 / T.

  Raises:
    UserError: steps < 1, shift <= 0, or an end outside (0, 1].
  """
  check_steps(steps)
  end = 1 / steps if end is None else end
  if shift <= 0 or not 0 < end <= 1:
    raise UserError(f"shift={shift}, end={end}; expected shift above 0, and end above 0 and at most 1")
  u = np.linspace(1, end, steps)
  return jnp.asarray(np.append(shift * u / (1 + (shift - 1) * u), 0.0))


def beta(steps: int, alpha: float = 0.6, beta: float = 0.6) -> Array:
  """steps + 1 times, the evenly spaced quantiles of Beta(alpha, beta) from 1 to 0; denser at both ends.

  Lee et al. 2024 (2407.12173).

  Raises:
    UserError: steps < 1, or an alpha or beta that is not above 0.
  """
  check_steps(steps)
  return jnp.asarray(beta_quantiles(steps + 1, alpha, beta))


def log_snr_uniform(
  process: Process, steps: int, log_snr_min: float = -4.0, log_snr_max: float = 4.0
) -> Array:
  """steps + 1 times, evenly spaced in log SNR from `log_snr_min`, noise, to `log_snr_max`, data.

  Raises:
    UserError: steps < 1.
  """
  check_steps(steps)
  return process.time(jnp.linspace(log_snr_min, log_snr_max, steps + 1))


def karras(
  process: Process,
  steps: int,
  sigma_min: float | None = None,
  sigma_max: float | None = None,
  rho: float = 7.0,
) -> Array:
  """`steps` times with ratios from `sigma_max` to `sigma_min`, evenly spaced in ratio^(1 / rho), then 0.

  Karras et al. 2022 (2206.00364), eq. 5.  By default `sigma_max` is the ratio at t = 1, or 80 if that
  is infinite.  `sigma_min` is the ratio at the first knot of a chain, or 0.002.

  Raises:
    UserError: steps < 1, or not 0 < sigma_min < sigma_max < infinity.
  """
  sigma_min, sigma_max = ratio_bounds(process, steps, sigma_min, sigma_max)
  return at_ratios(process, np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho)


def exponential(
  process: Process, steps: int, sigma_min: float | None = None, sigma_max: float | None = None
) -> Array:
  """As `karras`, but evenly spaced in log ratio, hence in log SNR: the limit of large rho."""
  sigma_min, sigma_max = ratio_bounds(process, steps, sigma_min, sigma_max)
  return at_ratios(process, np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), steps)))


def beta_ratio(
  process: Process,
  steps: int,
  sigma_min: float | None = None,
  sigma_max: float | None = None,
  alpha: float = 0.6,
  beta: float = 0.6,
) -> Array:
  """As `karras`, but at quantiles of Beta(alpha, beta) from `sigma_max` to `sigma_min`.

  diffusers' `use_beta_sigmas`.
  """
  sigma_min, sigma_max = ratio_bounds(process, steps, sigma_min, sigma_max)
  return at_ratios(process, sigma_min + beta_quantiles(steps, alpha, beta) * (sigma_max - sigma_min))


def align_your_steps(process: Process, steps: int, model: str = "sd15") -> Array:
  """steps + 1 times at the ratios of ALIGNED, the last of them 0.

  For other counts than ten the log ratios are interpolated linearly.  Sabour et al. 2024 (2404.14507)
  optimised them for one kind of network each: sd15, sdxl (both with latents of standard deviation
  near 1) or svd.  A ratio that the process does not reach becomes t = 1.

  Raises:
    UserError: steps < 1, or another model.
  """
  check_steps(steps)
  if model not in ALIGNED:
    raise UserError(f"model={model!r}; expected one of {sorted(ALIGNED)}")
  table = ALIGNED[model]
  ratios = np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(table)), np.log(table)))
  return at_ratios(process, ratios[:-1])


def leading(process: Process, steps: int, steps_offset: int = 0, dropped: int = 0) -> Array:
  """Every (T // (steps + dropped))-th knot of a chain of T betas, from knot `steps_offset` on, then 0.

  The noisiest comes first: Lin et al. 2024 (2305.08891), table 2.  `dropped` knots at the clean end
  are left out.  diffusers drops 1 in DPM-Solver and UniPC, and has steps_offset 1 in Stable Diffusion.

  Raises:
    UserError: a process that is no chain, steps < 1, more than it has knots, or a steps_offset
      beyond its last.
  """
  count = count_knots(process, steps, dropped)
  if not 0 <= steps_offset <= count - 1 - (steps + dropped - 1) * (count // (steps + dropped)):
    raise UserError(f"steps_offset={steps_offset} of {steps} leading steps; the chain has {count} knots")
  return at_knots(
    process, (np.arange(steps + dropped) * (count // (steps + dropped)) + steps_offset)[::-1][:steps]
  )


def trailing(process: Process, steps: int) -> Array:
  """The knots T, T - T / steps, ..., rounded, of a chain of T betas, then 0.

  Lin et al. 2024 (2305.08891), table 2.

  Raises:
    UserError: a process that is no chain, steps < 1, or more than it has knots.
  """
  count = count_knots(process, steps)
  return at_knots(process, np.round(count - np.arange(steps) * (count / steps)) - 1)


def linspace(process: Process, steps: int, dropped: int = 0, rounded: bool = True) -> Array:
  """Evenly spaced knots of a chain of T betas, from the last to the first, then 0.

  There are steps + `dropped` of them, and the `dropped` cleanest are left out: Lin et al. 2024
  (2305.08891), table 2.  They are rounded to knots if `rounded`.  Otherwise the ratio is interpolated
  linearly, as in diffusers' Euler, Heun and LMS.  The process itself is not linear between knots, so
  these times are slightly uneven.  A single step starts at the last knot (in diffusers at the first).

  Raises:
    UserError: a process that is no chain, steps < 1, or more than it has knots.
  """
  count = count_knots(process, steps, dropped)
  indices = np.linspace(count - 1, 0, steps + dropped)[:steps]
  if rounded:
    return at_knots(process, np.round(indices))
  knots = (np.arange(count) + 1) / count
  ratios = sigma_ratio(process, knots)
  if not np.isfinite(ratios).all():
    raise UserError(f"ratios between knots of {process}; the last is infinite: expected rounded=True")
  return at_ratios(process, np.interp(indices, np.arange(count), ratios))


def strided(process: Process, times: Array, end: float = 0.0) -> Array:
  """Pairs [N, 2] from each of the times [N + 1] but the last, down by T // N knots of a chain of T.

  A step need not end where the next begins: so do diffusers' DDIM and PNDM.  A step below the first
  knot ends at `end`: 0, or 1 / T for diffusers' set_alpha_to_one=False.

  Raises:
    UserError: a process that is no chain, no steps, or more than it has knots.
  """
  count = count_knots(process, len(times) - 1)
  indices = np.round(np.asarray(times[:-1], np.float64) * count) - count // (len(times) - 1)
  return jnp.stack([times[:-1], jnp.asarray(np.where(indices > 0, indices / count, end), times.dtype)], 1)


def lcm(process: Process, steps: int, original_inference_steps: int = 50) -> Array:
  """`steps` of the knots that a latent consistency model was distilled at, evenly from the last, then 0.

  Those are every (T // original_inference_steps)-th of a chain of T: Luo et al. 2023 (2310.04378).

  Raises:
    UserError: a process that is no chain, steps < 1 or more than `original_inference_steps`, or more
      `original_inference_steps` than it has knots.
  """
  count = count_knots(process, original_inference_steps)
  check_steps(steps)
  if steps > original_inference_steps:
    raise UserError(
      f"steps={steps}; expected at most the {original_inference_steps} that the network was distilled at"
    )
  known = np.arange(original_inference_steps, 0, -1) * (count // original_inference_steps) - 1
  return at_knots(process, known[np.arange(steps) * original_inference_steps // steps])


# names of the command line; (process, steps) -> pairs [N, 2]
GRIDS: dict[str, Callable[[Process, int], Array]] = {
  "uniform": lambda process, steps: adjacent_pairs(uniform(steps)),
  "karras": lambda process, steps: adjacent_pairs(karras(process, steps)),
  "exponential": lambda process, steps: adjacent_pairs(exponential(process, steps)),
  "beta": lambda process, steps: adjacent_pairs(beta(steps)),
  "shifted": lambda process, steps: adjacent_pairs(shifted(steps)),
  "align_your_steps": lambda process, steps: adjacent_pairs(align_your_steps(process, steps)),
  "leading": lambda process, steps: adjacent_pairs(leading(process, steps)),  # from here on chains alone
  "trailing": lambda process, steps: adjacent_pairs(trailing(process, steps)),
  "linspace": lambda process, steps: adjacent_pairs(linspace(process, steps)),
  "ddim": lambda process, steps: strided(process, leading(process, steps)),
  "lcm": lambda process, steps: adjacent_pairs(lcm(process, steps)),
}


@dataclasses.dataclass(frozen=True)
class Grid:
  """A grid by its name in GRIDS: grid(process, steps) -> pairs [N, 2].

  Raises:
    UserError: another name; when called, steps < 1 or a process that cannot have this grid.
  """

  timestep_spacing: str = "uniform"

  def __post_init__(self):
    if self.timestep_spacing not in GRIDS:
      raise UserError(f"grid={self.timestep_spacing!r}; expected one of {sorted(GRIDS)}")

  def __call__(self, process: Process, steps: int) -> Array:
    return GRIDS[self.timestep_spacing](process, steps)


def check_steps(steps: int) -> None:
  if steps < 1:
    raise UserError(f"steps={steps}; expected at least 1")


def count_knots(process: Process, steps: int, dropped: int = 0) -> int:
  """The number of knots."""
  check_steps(steps)
  if not isinstance(process, Discrete):
    raise UserError(
      f"steps between the knots of a chain of betas; expected a Discrete process, got {process}"
    )
  if steps + dropped > process.num_train_timesteps:
    raise UserError(
      f"steps={steps}; expected at most {process.num_train_timesteps - dropped} "
      f"of a chain of {process.num_train_timesteps} betas"
    )
  return process.num_train_timesteps


def at_knots(process: Discrete, indices: np.ndarray) -> Array:
  """Times (i + 1) / T of indices [N] that count the knots from 0, and 0."""
  return jnp.asarray(np.append((indices + 1) / process.num_train_timesteps, 0.0))


def at_ratios(process: Process, ratios: np.ndarray) -> Array:
  """Times of ratios [N], and 0.

  Between knots of a chain the angle is linear here, and the log ratio in diffusers.  So at the same
  ratio its networks get timesteps that differ from ours by up to 0.05.
  """
  with jax.enable_x64(True):
    times = np.asarray(process.time(jnp.asarray(-2 * np.log(ratios))))
  return jnp.asarray(np.append(np.minimum(times, 1.0), 0.0))


def sigma_ratio(process: Process, times: np.ndarray) -> np.ndarray:
  """sigma / alpha at times [...], float64."""
  with jax.enable_x64(True):
    alpha, sigma = (
      np.asarray(rate(jnp.asarray(times, jnp.float64))) for rate in (process.alpha, process.sigma)
    )
  with np.errstate(divide="ignore"):
    return sigma / alpha


def ratio_bounds(
  process: Process, steps: int, sigma_min: float | None = None, sigma_max: float | None = None
) -> tuple[float, float]:
  """The first and the last ratio of a grid of `steps`, smaller first."""
  check_steps(steps)
  top = float(sigma_ratio(process, np.ones(())))
  sigma_max = (top if math.isfinite(top) else 80.0) if sigma_max is None else sigma_max
  first = (
    float(sigma_ratio(process, np.array(1 / process.num_train_timesteps)))
    if isinstance(process, Discrete)
    else 0.002
  )
  sigma_min = first if sigma_min is None else sigma_min
  if not 0 < sigma_min < sigma_max < math.inf:
    raise UserError(
      f"sigma_min={sigma_min}, sigma_max={sigma_max}; "
      "expected ratios of sigma to alpha, 0 < sigma_min < sigma_max, both finite"
    )
  return sigma_min, sigma_max


def beta_quantiles(count: int, alpha: float, beta: float) -> np.ndarray:
  """`count` evenly spaced quantiles of Beta(alpha, beta) from 1 to 0; only 1 if count is 1."""
  if alpha <= 0 or beta <= 0:
    raise UserError(f"alpha={alpha}, beta={beta}; expected both above 0")
  from scipy import special  # not at the top: no other command waits for its import

  return special.betaincinv(alpha, beta, np.linspace(1, 0, count))
