"""Predictor-corrector sampling: Song et al. 2021 (2011.13456), algorithms 2 and 3.

The predictor is any sampler.  The corrector is annealed Langevin dynamics, with steps of a fixed size
in place of theirs, which follow from norms.  With the score grad log p(z) = -eps / sigma and steps
delta = step_size sigma^2,

  (1)  z <- z + delta grad log p(z) + sqrt(2 delta) eps'
          = z - step_size sigma eps + sqrt(2 step_size) sigma eps'

which leaves p(z_s) as it is up to an error of first order in `step_size`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jldm.core.keys import normal_like, split_each
from jldm.core.trees import choice, pytree
from jldm.diffusion.process import Process
from jldm.samplers.ddim import DDIM
from jldm.samplers.sample import Denoise, Sampler, replace_z

Array = jax.Array


@pytree
@dataclasses.dataclass(frozen=True)
class PredictorCorrector:
  """The sampler's step, then `correct_steps` of (1) at its end, one evaluation each; none at sigma = 0.

  A multistep history starts anew after each correction, so one-step samplers gain the most.
  """

  sampler: Sampler = DDIM()
  step_size: float = 0.1
  correct_steps: int = choice(1)

  def init(self, process: Process, z: Array, pairs: Array) -> Any:
    return self.sampler.init(process, z, pairs)

  def step(self, process: Process, denoise: Denoise, state: Any, t: Array, s: Array, keys: Array) -> Any:
    key_step, *key_corrections = split_each(keys, 1 + self.correct_steps)
    state = self.sampler.step(process, denoise, state, t, s, key_step)
    if not self.correct_steps:
      return state
    sigma = process.sigma(s)

    def corrected(z: Array, key: Array) -> Array:
      noise = jnp.sqrt(2 * self.step_size) * normal_like(key, z)
      return z + sigma * (noise - self.step_size * denoise(z, s).eps)

    def correct(z: Array, key: Array) -> tuple[Array, None]:
      return jax.lax.cond(sigma > 0, lambda: corrected(z, key), lambda: z), None

    return replace_z(state, jax.lax.scan(correct, state.z, jnp.stack(key_corrections))[0])
