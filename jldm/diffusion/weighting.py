"""The weight of the squared error at each noise level.

A weighting is stated as in its paper: for the error in some target, and in some measure.  Here it
becomes a factor on the squared error e^2 of whatever the network predicts.  With det the determinant
of the network's row (jldm.diffusion.target), the errors in x0 and eps are -sigma e / det and
alpha e / det, so that

  (1)  |x0 error|^2 = sigma^2 / det^2 e^2,    |eps error|^2 = alpha^2 / det^2 e^2 = SNR |x0 error|^2
  (2)  -d log_snr / dt = 2 det_flow / (alpha sigma),    det_flow = alpha d_sigma - sigma d_alpha

The formulas below are built from (1) and (2), so that none is 0 / 0 where alpha or sigma vanishes.

Measure "t" is a mean over times as they are drawn.  Measure "log_snr" is an integral over log SNR,
however times are drawn: the factor is then a density in t, and the objective divides it by the
density of the drawn times.
"""

import dataclasses
import math
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.diffusion.process import Rates
from jldm.diffusion.target import TARGETS, Row, determinant, reweight

Array = jax.Array


class Weighting(Protocol):
  """Stated for the error in `target` and in a `measure`; `factor` multiplies the squared error in `row`."""

  target: str
  measure: str

  def factor(self, row: Row, r: Rates) -> Array: ...


def target_factor(target: str, row: Row, r: Rates) -> Array:
  """Equation (1), for any target."""
  return reweight(row, TARGETS[target](r), r)


@dataclasses.dataclass(frozen=True)
class Unweighted:
  """The plain squared error in what the network predicts."""

  target: ClassVar[str] = "its own"
  measure: ClassVar[str] = "t"

  def factor(self, row: Row, r: Rates) -> Array:
    del row
    return jnp.ones_like(r.alpha)


@dataclasses.dataclass(frozen=True)
class TargetWeighting:
  """The squared error in `target`, whatever the network predicts.

  It is at most `max_weight` times the squared error in what the network predicts.

  Predict("x0") with TargetWeighting("flow", 400) is JiT, Li & He 2025 (2511.13720), whose 1 / t^2 is
  bounded at t = 0.05.

  Raises:
    UserError: an unknown target.
  """

  target: str = "eps"
  max_weight: float | None = None
  measure: ClassVar[str] = "t"

  def __post_init__(self):
    if self.target not in TARGETS:
      raise UserError(f"target={self.target!r}; expected one of {sorted(TARGETS)}")

  def factor(self, row: Row, r: Rates) -> Array:
    factor = target_factor(self.target, row, r)
    return factor if self.max_weight is None else jnp.minimum(factor, self.max_weight)


@dataclasses.dataclass(frozen=True)
class MinSNR:
  """min(SNR, gamma) |x0 error|^2: Hang et al. 2023 (2303.09556), eq. 6."""

  gamma: float = 5.0
  target: ClassVar[str] = "x0"
  measure: ClassVar[str] = "t"

  def factor(self, row: Row, r: Rates) -> Array:
    return jnp.minimum(target_factor("eps", row, r), self.gamma * target_factor("x0", row, r))


@dataclasses.dataclass(frozen=True)
class EDMWeighting:
  """(1 / sigma_data^2 + SNR) |x0 error|^2: Karras et al. 2022 (2206.00364), table 1; 1 for
  Precondition(sigma_data).
  """

  sigma_data: float = 1.0
  target: ClassVar[str] = "x0"
  measure: ClassVar[str] = "t"

  def factor(self, row: Row, r: Rates) -> Array:
    return target_factor("x0", row, r) / self.sigma_data**2 + target_factor("eps", row, r)


@dataclasses.dataclass(frozen=True)
class Sigmoid:
  """1/2 sigmoid(bias - log_snr) |eps error|^2 over log SNR.

  Kingma & Gao 2023 (2303.00848) and SiD2 (2410.19324).

  sigmoid(bias - log_snr) = sigma^2 / (sigma^2 + exp(-bias) alpha^2), so with (1) and (2) the factor is
  alpha sigma / det^2  times  det_flow / (sigma^2 + exp(-bias) alpha^2).
  """

  bias: float = -1.0
  target: ClassVar[str] = "eps"
  measure: ClassVar[str] = "log_snr"

  def factor(self, row: Row, r: Rates) -> Array:
    eps_factor, x0_factor = target_factor("eps", row, r), target_factor("x0", row, r)
    both = jnp.sqrt(eps_factor) * jnp.sqrt(x0_factor)  # alpha sigma / det^2
    return both * determinant(TARGETS["flow"](r), r) / (r.sigma**2 + math.exp(-self.bias) * r.alpha**2)
