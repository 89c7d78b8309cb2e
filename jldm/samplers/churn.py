"""Stochastic sampling of Karras et al. 2022 (2206.00364): each step first adds noise.

Their algorithm 2 is Churn(Heun(Ratio())).

  (1)  sigma^ / alpha^ = (1 + gamma) sigma / alpha,   then the inner sampler's step from t^ to s
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jldm.core.keys import split_each
from jldm.core.trees import pytree
from jldm.diffusion.process import Process
from jldm.samplers.heun import Heun
from jldm.samplers.sample import Denoise, Sampler, renoise, replace_z

Array = jax.Array


def karras_gamma(s_churn: float, steps: int) -> float:
  """min(s_churn / steps, sqrt 2 - 1): algorithm 2's gamma, S_churn spread over the steps."""
  return min(s_churn / steps, math.sqrt(2) - 1)


@pytree
@dataclasses.dataclass(frozen=True)
class Churn:
  """Wraps any sampler; all numbers are traced.

  gamma: of (1); 0 adds no noise.
  s_tmin, s_tmax: noise is added at sigma / alpha between these.
  s_noise: the scale of the noise.

  No noise is added upward (s > t) or beyond t = 1.  After noise a multistep history starts anew, so
  that step is of first order.
  """

  sampler: Sampler = Heun()
  gamma: float = 0.0
  s_tmin: float = 0.0
  s_tmax: float = math.inf
  s_noise: float = 1.0

  def init(self, process: Process, z: Array, pairs: Array) -> Any:
    return self.sampler.init(process, z, pairs)

  def step(self, process: Process, denoise: Denoise, state: Any, t: Array, s: Array, keys: Array) -> Any:
    key_churn, key_step = split_each(keys)
    ratio = process.sigma(t) / process.alpha(t)
    inside = (
      (s < t) & (ratio >= self.s_tmin) & (ratio <= self.s_tmax) & jnp.isfinite(ratio) & (self.gamma > 0)
    )
    up = process.time(-2 * jnp.log(jnp.where(inside, ratio * (1 + self.gamma), 1)))
    up = jnp.where(inside, jnp.clip(up, t, 1), t)
    state = replace_z(state, renoise(process, state.z, t, up, key_churn, self.s_noise), up > t)
    return self.sampler.step(process, denoise, state, up, s, key_step)
