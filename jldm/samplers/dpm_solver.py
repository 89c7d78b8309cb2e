"""DPM-Solver++ (2M), Lu et al. 2022 (2211.01095), algorithm 2.

With lambda = log(alpha / sigma), h = lambda_s - lambda_t and the estimate before, made at h_last below lambda_t,

  (1)  z_s = alpha_s x0 + sigma_s eps + alpha_s (1 - exp(-h)) h / (2 h_last) (x0 - x0_last)

which is the paper's update, written as DDIM and a correction, so that both ends and upward steps are regular.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jldm.core.trees import pytree
from jldm.diffusion.process import Process, half_log_snr
from jldm.samplers.sample import Denoise

Array = jax.Array


class MultistepState(NamedTuple):
  """The last estimate and the time t where it was made; t equal to the next step's own restarts the history."""

  z: Array  # [B, ...]
  x0: Array  # [B, ...]
  t: Array  # []


@pytree
@dataclasses.dataclass(frozen=True)
class DPMSolverPP2M:
  """Second order, one evaluation a step; first order where the log SNR is infinite or there is no history."""

  def init(self, process: Process, z: Array, pairs: Array) -> MultistepState:
    return MultistepState(z, jnp.zeros_like(z), pairs[0, 0])

  def step(self, process: Process, denoise: Denoise, state: MultistepState, t: Array, s: Array, keys: Array):
    del keys
    x0, eps, _ = denoise(state.z, t)
    here = half_log_snr(process, t)
    h, h_last = half_log_snr(process, s) - here, here - half_log_snr(process, state.t)
    second = jnp.isfinite(h) & jnp.isfinite(h_last) & (h_last != 0) & (state.t != t)
    slope = -jnp.expm1(jnp.where(second, -h, 0)) * h / (2 * jnp.where(second, h_last, 1))
    slope = jnp.where(second, slope, 0) * process.alpha(s)
    z = process.alpha(s) * x0 + process.sigma(s) * eps + slope * (x0 - state.x0)
    return MultistepState(z, x0, t)
