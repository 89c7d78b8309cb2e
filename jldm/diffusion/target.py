"""What a network's output means.

  (1)  every target is a row (p, q):   output = p x0 + q eps
  (2)  decoding solves   | alpha sigma | |x0 |   |  z   |
                         |   p     q   | |eps| = |output|
  (3)  an error e in the output of row (p, q) at fixed z is an error  e det(p', q') / det(p, q)  in that of (p', q'),
       where  det(p, q) = alpha q - sigma p  is the determinant of (2)

A row whose determinant vanishes says nothing about (x0, eps) there: eps at alpha = 0, x0 at sigma = 0.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.diffusion.process import Process, Rates, rates

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
  """The network is fed z and t as they are and predicts the target named `kind`.

  Raises:
    UserError: `kind` is not in TARGETS.
  """

  kind: str = "v"

  def __post_init__(self):
    if self.kind not in TARGETS:
      raise UserError(f"predict={self.kind!r}; expected one of {sorted(TARGETS)}")

  def row(self, r: Rates) -> Row:
    return TARGETS[self.kind](r)

  def c_in(self, r: Rates) -> Array:
    return jnp.ones_like(r.alpha)

  def c_noise(self, process: Process, t: Array) -> Array:
    del process
    return t


class Denoised(NamedTuple):
  """What a denoiser says of z_t: its parts x0 and eps [B, ...], and log_variance where the network learns it."""

  x0: Array
  eps: Array
  log_variance: Array | None = None


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
  """The factor (3) that turns squared error in one target into squared error in the other."""
  return (determinant(other, r) / determinant(row, r)) ** 2


def denoiser(process: Process, parametrization: Any, apply: Callable[..., Array]) -> Callable[..., Denoised]:
  """A bound network, apply(c_in z [B, ...], c_noise [B], *condition), as denoise(z [B, ...], t [] or [B], *condition)."""

  def denoise(z: Array, t: Array, *condition) -> Denoised:
    r = rates(process, t, z)
    level = jnp.broadcast_to(parametrization.c_noise(process, t), z.shape[:1])
    output = apply(parametrization.c_in(r) * z, level, *condition)
    return decode(parametrization.row(r), r, z, output.astype(z.dtype))

  return denoise


def refuse_singular(process: Process, parametrization: Any, times: np.ndarray) -> None:
  """Raises a UserError where the row's determinant vanishes at one of the times [N] that are asked for."""
  t = jnp.asarray(times, jnp.float32)
  r = rates(process, t, t)
  det = np.asarray(determinant(parametrization.row(r), r))
  singular = np.flatnonzero(np.abs(det) <= 1e-6 * np.hypot(r.alpha, r.sigma))
  if singular.size:
    t = float(np.asarray(times)[singular[0]])
    raise UserError(
      f"{parametrization} says nothing about the data at t = {t:g} of {process}; "
      "use Predict('v') or Predict('flow'), or keep away from that time"
    )
