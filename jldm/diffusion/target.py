"""What a network's output means.

  (1)  every target is a row (p, q):   output = p x0 + q eps
  (2)  decoding solves   | alpha sigma | |x0 |   |  z   |
                         |   p     q   | |eps| = |output|
  (3)  an error e in the output of row (p, q) at fixed z is an error  e det(p', q') / det(p, q)  in
       that of (p', q'), where  det(p, q) = alpha q - sigma p  is the determinant of (2)

A row whose determinant vanishes does not determine (x0, eps) there: eps at alpha = 0, x0 at sigma = 0.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.specs import Output
from jldm.diffusion.process import Process, Rates, half_log_snr, rates, timestep

MOST_ALPHA = 0.5  # at time 1, for noise to stand for a part that is not known

Array = jax.Array
Row = tuple[Array, Array]

TARGETS: dict[str, Callable[[Rates], Row]] = {  # a row here is all that a new target needs
  "x0": lambda r: (jnp.ones_like(r.alpha), jnp.zeros_like(r.alpha)),
  "eps": lambda r: (jnp.zeros_like(r.alpha), jnp.ones_like(r.alpha)),
  "v": lambda r: (-r.sigma, r.alpha),  # Salimans & Ho 2022 (2202.00512), section 4
  "flow": lambda r: (r.d_alpha, r.d_sigma),  # dz/dt, Lipman et al. 2022 (2210.02747)
}


@dataclasses.dataclass(frozen=True)
class Predict:
  """The network gets z unchanged and predicts the target `prediction_type`.

  reverse_time: the network counts time from noise to data, 1 - t, as SiT (2401.08740) does.  Its "flow"
    is the derivative by that time, -dz/dt.
  time_scale: the network is given its time times this.  Networks here multiply it by 1000, so 0.001 is
    for those that were trained on times from 0 to 1.

  Raises:
    UserError: `prediction_type` is not in TARGETS.
  """

  prediction_type: str = "v"
  reverse_time: bool = False
  time_scale: float = 1.0

  def __post_init__(self):
    if self.prediction_type not in TARGETS:
      raise UserError(f"prediction_type={self.prediction_type!r}; expected one of {sorted(TARGETS)}")

  def row(self, r: Rates) -> Row:
    p, q = TARGETS[self.prediction_type](r)
    return (-p, -q) if self.reverse_time and self.prediction_type == "flow" else (p, q)

  def c_in(self, r: Rates) -> Array:
    return jnp.ones_like(r.alpha)

  def c_noise(self, process: Process, t: Array) -> Array:
    number = timestep(process, t)
    return self.time_scale * (1 - number if self.reverse_time else number)


@dataclasses.dataclass(frozen=True)
class Precondition:
  """Karras et al. 2022 (2206.00364), eq. 7 and table 1, for data of standard deviation `sigma_data`,
  in any process.

  With s^2 = alpha^2 sigma_data^2 + sigma^2 the variance of z: c_in = 1 / s, c_noise = log(sigma /
  alpha) / 4, and c_skip and c_out together are the row (sigma / sigma_data, -alpha sigma_data) / s.
  At sigma_data = 1 on a variance-preserving process it is -v.  The squared error in this row is
  their loss, eq. 8, weight included.
  """

  sigma_data: float = 1.0  # standardised latents

  def std(self, r: Rates) -> Array:
    return jnp.sqrt((r.alpha * self.sigma_data) ** 2 + r.sigma**2)

  def row(self, r: Rates) -> Row:
    return r.sigma / (self.sigma_data * self.std(r)), -r.alpha * self.sigma_data / self.std(r)

  def c_in(self, r: Rates) -> Array:
    return 1 / self.std(r)

  def c_noise(self, process: Process, t: Array) -> Array:
    return -0.25 * half_log_snr(process, t)


class Denoised(NamedTuple):
  """The parts x0 and eps [B, ...] of z_t, and v [B, ...] in [-1, 1] if the network predicts the
  variance of its steps.
  """

  x0: Array
  eps: Array
  variance: Array | None = None


def combine(row: Row, x0: Array, eps: Array) -> Array:
  """The target (1) of known x0 and eps [B, ...]."""
  return row[0] * x0 + row[1] * eps


def determinant(row: Row, r: Rates) -> Array:
  return r.alpha * row[1] - r.sigma * row[0]


def decode(row: Row, r: Rates, z: Array, output: Array) -> Denoised:
  """Solves (2) for x0 and eps, all [B, ...]."""
  det = determinant(row, r)
  return Denoised((row[1] * z - r.sigma * output) / det, (r.alpha * output - row[0] * z) / det)


def reweight(row: Row, other: Row, r: Rates) -> Array:
  """The factor (3) from squared error in one target to squared error in the other; 1 if both are the same.

  It is infinite at a time where `row` is singular, unless `other` is singular there in the same way.
  """
  det, det_other = determinant(row, r), determinant(other, r)
  same = jnp.abs(det) == jnp.abs(det_other)  # 0 / 0 at an end, and exactly 1 elsewhere
  return jnp.where(same, 1, (det_other / jnp.where(same, 1, det)) ** 2)


def denoiser(process: Process, parametrization: Any, apply: Callable[..., Output]) -> Callable[..., Denoised]:
  """A bound network as denoise(z [B, ...], t [] or [B], estimate=None, to=None) -> Denoised.

  apply(c_in z [B, ...], noise_level [B], estimate, to) -> Output, with noise_level = c_noise(t).
  `estimate` is an earlier x0 or None.  `to`, the time [] or [B] that the step of a flow map ends
  at, reaches apply as the noise level [B] there. z may be a dict by part; then t is a dict of the
  parts' own times, and so are noise_level, x0 and eps.
  """

  def level(time: Array, like: Array) -> Array:
    return jnp.broadcast_to(parametrization.c_noise(process, time), like.shape[:1])

  def denoise(z: Any, t: Any, estimate: Any = None, to: Array | None = None) -> Denoised:
    r = jax.tree.map(lambda part, time: rates(process, time, part), z, t)
    scaled = jax.tree.map(lambda part, own: parametrization.c_in(own) * part, z, r)
    levels = jax.tree.map(lambda part, time: level(time, part), z, t)
    output = apply(scaled, levels, estimate, None if to is None else level(to, jax.tree.leaves(z)[0]))
    solve = lambda part, own, value: decode(parametrization.row(own), own, part, value.astype(part.dtype))
    each = jax.tree.map(solve, z, r, output.value)
    x0 = jax.tree.map(lambda part, denoised: denoised.x0, z, each)
    eps = jax.tree.map(lambda part, denoised: denoised.eps, z, each)
    return Denoised(x0, eps, output.variance)

  return denoise


def refuse_singular(process: Process, parametrization: Any, times: np.ndarray) -> None:
  """Raises a UserError if the network's output does not determine the data at one of the times [N].

  That is so if the row's determinant vanishes, or if the network would be given an infinite noise level.
  """
  singular = np.flatnonzero(is_singular(process, parametrization, times))
  if singular.size:
    works = [name for name, row in ROWS.items() if not is_singular(process, row, times).any()]
    raise UserError(
      f"{parametrization} says nothing about the data at t = {float(np.asarray(times)[singular[0]]):g} "
      f"of {process}; "
      f"use {' or '.join(works) or 'another process'}, or keep away from that time"
    )


def refuse_held(process: Process, parametrization: Any, times: np.ndarray) -> None:
  """Raises a UserError if a part cannot be held at one of the times [N] while other parts are drawn.

  The noise level of a held part must be finite.  A part that is not known stands as noise at time 1,
  so no data may be left there.
  """
  t = jnp.asarray(times, jnp.float32)
  infinite = np.flatnonzero(~np.isfinite(np.asarray(parametrization.c_noise(process, t))))
  if infinite.size:
    raise UserError(
      f"{parametrization} has no finite noise level at t = {float(t[infinite[0]]):g} of {process}, "
      "where a part is held; use Predict('v') or Predict('flow'), or draw that part too"
    )
  alpha = float(process.alpha(jnp.float32(1)))
  if (np.asarray(times) == 1).any() and alpha > MOST_ALPHA:
    raise UserError(
      f"a part that is not known stands as noise at t = 1, where {process} has alpha = {alpha:g} "
      "and data left; use Flow() or Cosine(), or give or draw that part"
    )


def is_singular(process: Process, parametrization: Any, times: np.ndarray) -> np.ndarray:
  """bool [N], on the host."""
  t = jnp.asarray(times, jnp.float32)
  r = rates(process, t, t)
  det = np.abs(determinant(parametrization.row(r), r))
  noise_level = np.asarray(parametrization.c_noise(process, t))
  regular = np.isfinite(det) & (det > 1e-6 * np.hypot(r.alpha, r.sigma))
  return ~(regular & np.isfinite(noise_level))


ROWS = {  # recommended if another is singular
  "Predict('v')": Predict("v"),
  "Predict('flow')": Predict("flow"),
  "Precondition()": Precondition(),
}
