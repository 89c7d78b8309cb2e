"""Grids of times, and the pairs (t, s) that a sampler walks.

Grids are made before anything is compiled and come in JAX's default float type.  A "ratio" is sigma
/ alpha.  Where a process has alpha = 0 at t = 1 the ratio is infinite there, and grids of ratios
begin at 80.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from jldm.core.errors import UserError
from jldm.diffusion.process import Discrete, Process

Array = jax.Array

ALIGNED = {  # Sabour et al. 2024 (2404.14507), table 3: ratios at the ends of ten steps
  "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
  "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
  "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def adjacent_pairs(times: Array) -> Array:
  """Times [N + 1] -> adjoining pairs [N, 2]."""
  return jnp.stack([times[:-1], times[1:]], 1)


def pad_pairs(pairs: Sequence[Array]) -> Array:
  """Pairs [N_b, 2] of B requests -> [B, N, 2] with N the largest N_b: shorter rows end with (0, 0),
  where nothing changes.

  The padding is at the end, since step i draws its noise from the key folded with i.

  Raises:
    UserError: no pairs, or an array of another shape.
  """
  shapes = [np.shape(each) for each in pairs]
  if not shapes or any(len(shape) != 2 or shape[1] != 2 for shape in shapes):
    raise UserError(f"pairs of shapes {shapes}; expected at least one array, each [N, 2]")
  longest = max(count for count, _ in shapes)
  return jnp.stack([jnp.pad(jnp.asarray(each), ((0, longest - len(each)), (0, 0))) for each in pairs])


def uniform(steps: int, start: float = 1.0, end: float = 0.0) -> Array:
  """steps + 1 evenly spaced times from `start` to `end`.

  Raises:
    UserError: steps < 1.
  """
  check_steps(steps)
  return jnp.linspace(start, end, steps + 1)


def shifted(steps: int, shift: float = 3.0, end: float | None = None) -> Array:
  """shift u / (1 + (shift - 1) u) of `steps` evenly spaced u from 1 to `end`, by default 1 / steps, and then 0.

  Esser et al. 2024 (2403.03206), eq. 23: more of the steps among noise where shift > 1.  diffusers'
  FlowMatchEuler, left to make its own timesteps of a chain of T, shifts twice: its `end` is the
  shifted 1 / T.

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
  """steps + 1 times, the even quantiles of Beta(alpha, beta) from 1 to 0: Lee et al. 2024 (2407.12173),
  denser at both ends.

  Raises:
    UserError: steps < 1, or an alpha or beta that is not above 0.
  """
  check_steps(steps)
  return jnp.asarray(quantiles(steps + 1, alpha, beta))


def log_snr_uniform(
  process: Process, steps: int, log_snr_min: float = -4.0, log_snr_max: float = 4.0
) -> Array:
  """steps + 1 times, evenly spaced in log SNR from the noisy end `log_snr_min` to the clean end `log_snr_max`.

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
  """`steps` times whose ratios are even in ratio^(1 / rho) from `sigma_max` to `sigma_min`, then 0: Karras et al.
  2022 (2206.00364), eq. 5.

  By default `sigma_max` is the ratio at t = 1, or 80 where that is infinite, and `sigma_min` that of a chain's
  first knot, or 0.002.

  Raises:
    UserError: steps < 1, or not 0 < sigma_min < sigma_max < infinity.
  """
  sigma_min, sigma_max = bounds(process, steps, sigma_min, sigma_max)
  return at_ratios(process, np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho)


def exponential(
  process: Process, steps: int, sigma_min: float | None = None, sigma_max: float | None = None
) -> Array:
  """As `karras`, but even in log ratio, hence in log SNR: rho to infinity."""
  sigma_min, sigma_max = bounds(process, steps, sigma_min, sigma_max)
  return at_ratios(process, np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), steps)))


def beta_ratio(
  process: Process,
  steps: int,
  sigma_min: float | None = None,
  sigma_max: float | None = None,
  alpha: float = 0.6,
  beta: float = 0.6,
) -> Array:
  """As `karras`, but at the even quantiles of Beta(alpha, beta) between `sigma_min` and `sigma_max`: what diffusers
  makes of `beta`.
  """
  sigma_min, sigma_max = bounds(process, steps, sigma_min, sigma_max)
  return at_ratios(process, sigma_min + quantiles(steps, alpha, beta) * (sigma_max - sigma_min))


def align_your_steps(process: Process, steps: int, model: str = "sd15") -> Array:
  """steps + 1 times at the ratios of ALIGNED, log-linear between them for other counts than ten, the
  last of them 0.

  Sabour et al. 2024 (2404.14507), optimized for networks of one kind: sd15, sdxl (both of latents
  of standard deviation near 1) or svd.  A ratio that the process does not reach is t = 1.

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
  """Of a chain of T betas every (T // (steps + dropped))-th knot from the first + `steps_offset`, noisiest
  first, then 0.

  Lin et al. 2024 (2305.08891), table 2.  `dropped`: so many knots more at the clean end, left out;
  diffusers has 1 in DPM-Solver and UniPC, and an steps_offset of 1 in Stable Diffusion.

  Raises:
    UserError: a process that is no chain, steps < 1, more than it has knots, or an steps_offset beyond its last.
  """
  count = check_chain(process, steps, dropped)
  if not 0 <= steps_offset <= count - 1 - (steps + dropped - 1) * (count // (steps + dropped)):
    raise UserError(f"steps_offset={steps_offset} of {steps} leading steps; the chain has {count} knots")
  return at_knots(
    process, (np.arange(steps + dropped) * (count // (steps + dropped)) + steps_offset)[::-1][:steps]
  )


def trailing(process: Process, steps: int) -> Array:
  """Of a chain of T betas the knots at T, T - T / steps, ..., rounded, then 0: Lin et al. 2024
  (2305.08891), table 2.

  Raises:
    UserError: a process that is no chain, steps < 1, or more than it has knots.
  """
  count = check_chain(process, steps)
  return at_knots(process, np.round(count - np.arange(steps) * (count / steps)) - 1)


def linspace(process: Process, steps: int, dropped: int = 0, rounded: bool = True) -> Array:
  """Of a chain of T betas steps + `dropped` knots evenly from the last to the first, without `dropped`
  clean ones, then 0.

  Lin et al. 2024 (2305.08891), table 2.  Rounded to knots if `rounded`; else the ratio is linear
  between knots, as in diffusers' Euler, Heun and LMS, while rates of a process are not: these times
  are a little off the even ones.  One step is from the last knot (there from the first).

  Raises:
    UserError: a process that is no chain, steps < 1, or more than it has knots.
  """
  count = check_chain(process, steps, dropped)
  indices = np.linspace(count - 1, 0, steps + dropped)[:steps]
  if rounded:
    return at_knots(process, np.round(indices))
  knots = (np.arange(count) + 1) / count
  ratios = ratio(process, knots)
  if not np.isfinite(ratios).all():
    raise UserError(f"ratios between knots of {process}; the last is infinite: expected rounded=True")
  return at_ratios(process, np.interp(indices, np.arange(count), ratios))


def strided(process: Process, times: Array, end: float = 0.0) -> Array:
  """Pairs [N, 2] from each of the times [N + 1] but the last down by T // N knots of a chain of T,
  wherever the next begins.

  So go diffusers' DDIM and PNDM.  What would be below the first knot is `end`: 0, or 1 / T where
  "alpha is not set to one".

  Raises:
    UserError: a process that is no chain, no steps, or more than it has knots.
  """
  count = check_chain(process, len(times) - 1)
  indices = np.round(np.asarray(times[:-1], np.float64) * count) - count // (len(times) - 1)
  return jnp.stack([times[:-1], jnp.asarray(np.where(indices > 0, indices / count, end), times.dtype)], 1)


def lcm(process: Process, steps: int, original_inference_steps: int = 50) -> Array:
  """Of the knots that a chain of T was distilled at, every (T // original_inference_steps)-th, `steps` evenly from the
  last, then 0.

  Latent consistency models, Luo et al. 2023 (2310.04378).

  Raises:
    UserError: a process that is no chain, steps < 1, more than `original_inference_steps`, or `original_inference_steps` more than
      it has knots.
  """
  count = check_chain(process, original_inference_steps)
  check_steps(steps)
  if steps > original_inference_steps:
    raise UserError(
      f"steps={steps}; expected at most the {original_inference_steps} that the network was distilled at"
    )
  known = np.arange(original_inference_steps, 0, -1) * (count // original_inference_steps) - 1
  return at_knots(process, known[np.arange(steps) * original_inference_steps // steps])


def restart(times: Array, t_min: float, t_max: float, repeats: int = 1, steps: int = 4) -> Array:
  """Pairs along times [N + 1] that at `t_min` go up to `t_max` and down again in `steps` even steps,
  `repeats` times.

  Restart, Xu et al. 2023 (2306.14878), algorithm 1, for jldm.samplers.resample.  `t_min` is put among
  the times if it is not one of them.

  Raises:
    UserError: not times[N] <= t_min < t_max <= 1, t_min above times[0], or less than one repeat or step.
  """
  first, last = float(times[0]), float(times[-1])
  if not last <= t_min < t_max <= 1 or t_min > first or repeats < 1 or steps < 1:
    raise UserError(
      f"t_min={t_min}, t_max={t_max}, repeats={repeats}, steps={steps} of times from {first:g} to {last:g}; "
      "expected t_min < t_max, t_min among the times, and at least one repeat of one step"
    )
  walked = np.asarray(times, np.float64)
  again = np.tile(np.linspace(t_max, t_min, steps + 1), repeats)
  return adjacent_pairs(
    jnp.asarray(
      np.concatenate([walked[walked > t_min + 1e-6], [t_min], again, walked[walked < t_min - 1e-6]])
    )
  )


def repaint(times: Array, jump_length: int = 10, jump_n_sample: int = 10) -> Array:
  """Pairs along times [N + 1] that at every `jump_length`-th go back up by `jump_length` of them, until each stretch
  was gone `jump_n_sample` times.

  RePaint, Lugmayr et al. 2022 (2201.09865), section 4.2 and its schedule: counted from the clean
  end, at 1, 1 + jump_length, ... below N + 1 - jump_length.  Up is one step of fresh noise, which is theirs in
  distribution.

  Raises:
    UserError: jump_length or jump_n_sample < 1.
  """
  if jump_length < 1 or jump_n_sample < 1:
    raise UserError(f"jump_length={jump_length}, jump_n_sample={jump_n_sample}; expected at least 1")
  last = len(times) - 1
  left = {place: jump_n_sample - 1 for place in range(1, last + 1 - jump_length, jump_length)}
  places = [last]
  while places[-1] > 0:
    places.append(places[-1] - 1)
    if left.get(places[-1], 0) > 0:
      left[places[-1]] -= 1
      places.append(places[-1] + jump_length)
  return adjacent_pairs(times[last - np.array(places)])


GRIDS: dict[str, Callable[[Process, int], Array]] = {  # of the command line: (process, steps) -> pairs [N, 2]
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
  """Where the steps stand, by a name of GRIDS: grid(process, steps) -> pairs [N, 2].

  Raises:
    UserError: another name; when called, steps < 1 or a process that cannot have this grid.
  """

  timestep_spacing: str = "uniform"

  def __post_init__(self):
    if self.timestep_spacing not in GRIDS:
      raise UserError(f"grid={self.timestep_spacing!r}; expected one of {sorted(GRIDS)}")

  def __call__(self, process: Process, steps: int) -> Array:
    return GRIDS[self.timestep_spacing](process, steps)


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pairs (t, s) as they are, ((1.0, 0.5), (0.5, 0.0)); the number of steps is theirs.

  Raises:
    UserError: times that are no pairs.
  """

  pairs: tuple[tuple[float, float], ...]

  def __post_init__(self):
    if not self.pairs or np.ndim(self.pairs) != 2 or np.shape(self.pairs)[1] != 2:
      raise UserError(f"pairs of shape {list(np.shape(self.pairs))}; expected (t, s), (t, s), …: [N, 2]")

  def __call__(self, process: Process, steps: int) -> Array:
    return jnp.asarray(self.pairs, jnp.float32)


def check_steps(steps: int) -> None:
  if steps < 1:
    raise UserError(f"steps={steps}; expected at least 1")


def check_chain(process: Process, steps: int, dropped: int = 0) -> int:
  """The number of knots."""
  check_steps(steps)
  if not isinstance(process, Discrete):
    raise UserError(
      f"steps between the knots of a chain of betas; expected a Discrete process, got {process}"
    )
  if steps + dropped > process.num_train_timesteps:
    raise UserError(
      f"steps={steps}; expected at most {process.num_train_timesteps - dropped} of a chain of {process.num_train_timesteps} betas"
    )
  return process.num_train_timesteps


def at_knots(process: Discrete, indices: np.ndarray) -> Array:
  """Times (i + 1) / T of indices [N] that count the knots from 0, and 0."""
  return jnp.asarray(np.append((indices + 1) / process.num_train_timesteps, 0.0))


def at_ratios(process: Process, ratios: np.ndarray) -> Array:
  """Times of ratios [N], and 0.

  Between the knots of a chain the angle is linear, where diffusers has the log of the ratio linear:
  at the same ratio it tells a network timesteps that are up to 0.05 off ours.
  """
  with jax.enable_x64(True):
    times = np.asarray(process.time(jnp.asarray(-2 * np.log(ratios))))
  return jnp.asarray(np.append(np.minimum(times, 1.0), 0.0))


def ratio(process: Process, times: np.ndarray) -> np.ndarray:
  """sigma / alpha at times [...], float64."""
  with jax.enable_x64(True):
    alpha, sigma = (
      np.asarray(rate(jnp.asarray(times, jnp.float64))) for rate in (process.alpha, process.sigma)
    )
  with np.errstate(divide="ignore"):
    return sigma / alpha


def bounds(
  process: Process, steps: int, sigma_min: float | None = None, sigma_max: float | None = None
) -> tuple[float, float]:
  """The ratios between which a grid of `steps` goes."""
  check_steps(steps)
  top = float(ratio(process, np.ones(())))
  sigma_max = (top if math.isfinite(top) else 80.0) if sigma_max is None else sigma_max
  first = (
    float(ratio(process, np.array(1 / process.num_train_timesteps)))
    if isinstance(process, Discrete)
    else 0.002
  )
  sigma_min = first if sigma_min is None else sigma_min
  if not 0 < sigma_min < sigma_max < math.inf:
    raise UserError(
      f"sigma_min={sigma_min}, sigma_max={sigma_max}; expected ratios of sigma to alpha, 0 < sigma_min < sigma_max, both finite"
    )
  return sigma_min, sigma_max


def quantiles(count: int, alpha: float, beta: float) -> np.ndarray:
  """The quantiles [count] of Beta(alpha, beta), evenly from 1 to 0; of one, 1."""
  if alpha <= 0 or beta <= 0:
    raise UserError(f"alpha={alpha}, beta={beta}; expected both above 0")
  return special.betaincinv(alpha, beta, np.linspace(1, 0, count))
