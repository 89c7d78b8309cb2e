"""Multistep consistency sampling, Song et al. 2023 (2303.01469), algorithm 1: networks that predict the
data in one step, as consistency models and LCM do.

  (1)  z_s = alpha_s x0 + sigma_s ((1 - gamma^2)^(1/2) eps + gamma eps')

gamma = 1 draws all noise anew, as in the paper.  A smaller gamma keeps some of the predicted noise, and
0 is DDIM.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jldm.core.keys import normal_like
from jldm.core.shapes import expand
from jldm.core.trees import pytree
from jldm.diffusion.process import Process, timestep
from jldm.diffusion.target import Denoised
from jldm.samplers.sample import Denoise, State

Array = jax.Array


@pytree
@dataclasses.dataclass(frozen=True)
class Consistency:
  """One evaluation a step; gamma in [0, 1] is traced, and 0 is DDIM."""

  gamma: float = 1.0

  def init(self, process: Process, z: Array, pairs: Array) -> State:
    return State(z, jnp.zeros_like(z))

  def step(self, process: Process, denoise: Denoise, state: State, t: Array, s: Array, keys: Array) -> State:
    x0, eps, _ = denoise(state.z, t)
    noise = jnp.sqrt((1 - self.gamma) * (1 + self.gamma)) * eps + self.gamma * normal_like(keys, eps)
    return State(process.alpha(s) * x0 + process.sigma(s) * noise, x0)


def with_boundary(
  process: Process, denoise: Denoise, sigma_data: float = 0.5, timestep_scaling: float = 10_000.0
) -> Denoise:
  """The denoiser with x0 replaced by c_skip z + c_out x0, which is z at the clean end.

  With u = timestep_scaling timestep(t):

    c_skip = sigma_data^2 / (u^2 + sigma_data^2),   c_out = u / (u^2 + sigma_data^2)^(1/2)

  Luo et al. 2023 (2310.04378).  diffusers' timestep_scaling is 10 per step of a chain of 1,000.  eps
  stays; `Consistency()` does not use it.
  """

  def bounded(z: Array, t: Array, estimate: Array | None = None, to: Array | None = None) -> Denoised:
    x0, eps, variance = denoise(z, t, estimate, to)
    u = expand(timestep_scaling * timestep(process, t), z)
    norm = u**2 + sigma_data**2
    return Denoised(sigma_data**2 / norm * z + u / jnp.sqrt(norm) * x0, eps, variance)

  return bounded
