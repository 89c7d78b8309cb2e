"""Annealed Langevin dynamics as the corrector of any sampler: Song et al. 2021 (2011.13456), algorithms 2 and 3.

With the score grad log p(z) = -eps / sigma and steps of size delta = size sigma^2,

  (1)  z <- z + delta grad log p(z) + sqrt(2 delta) eps' = z - size sigma eps + sqrt(2 size) sigma eps'

which leaves p(z_s) as it is up to an error of first order in `size`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jldm.core.keys import normal, split_each
from jldm.core.trees import choice, pytree
from jldm.diffusion.process import Process
from jldm.samplers.ddim import DDIM
from jldm.samplers.sample import Denoise, Sampler, moved

Array = jax.Array


@pytree
@dataclasses.dataclass(frozen=True)
class Corrected:
  """The sampler's step, then `corrections` of (1) at its end, one evaluation each; none at sigma = 0.

  A multistep history starts anew after each, so one-step samplers gain the most.
  """

  sampler: Sampler = DDIM()
  size: float = 0.1
  corrections: int = choice(1)

  def init(self, process: Process, z: Array, pairs: Array) -> Any:
    return self.sampler.init(process, z, pairs)

  def step(self, process: Process, denoise: Denoise, state: Any, t: Array, s: Array, keys: Array) -> Any:
    key_step, *key_corrections = split_each(keys, 1 + self.corrections)
    state = self.sampler.step(process, denoise, state, t, s, key_step)
    sigma = process.sigma(s)
    for key in key_corrections:
      noise = jnp.sqrt(2 * self.size) * normal(key, state.z)
      z = state.z + sigma * (noise - self.size * denoise(state.z, s).eps)
      state = moved(state, jnp.where(sigma > 0, z, state.z))
    return state
