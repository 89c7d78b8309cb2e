"""Sampling of networks that jump to the data: consistency models, Song et al. 2023 (2303.01469),
algorithm 1, and LCM.

  (1)  z_s = alpha_s x0 + sigma_s ((1 - gamma^2)^(1/2) eps + gamma eps')

gamma = 1 is multistep consistency sampling; less keeps some of the noise that was found, and 0 is DDIM.
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
    old = jnp.sqrt((1 - self.gamma) * (1 + self.gamma))
    return State(
      process.alpha(s) * x0 + process.sigma(s) * (old * eps + self.gamma * normal_like(keys, eps)), x0
    )


def boundary(process: Process, denoise: Denoise, sigma_data: float = 0.5, scale: float = 10_000.0) -> Denoise:
  """The denoiser with x0 replaced by c_skip z + c_out x0, which is z at the clean end: Luo et al. 2023
  (2310.04378).

  With u = scale timestep(t):  c_skip = sigma_data^2 / (u^2 + sigma_data^2),  c_out = u / (u^2 +
  sigma_data^2)^(1/2).  The published scale is 10 a step of a chain of 1,000.  eps stays as it is,
  and `Consistency()` takes none of it.
  """

  def bounded(z: Array, t: Array, estimate: Array | None = None, to: Array | None = None) -> Denoised:
    x0, eps, variance = denoise(z, t, estimate, to)
    u = expand(scale * timestep(process, t), z)
    norm = u**2 + sigma_data**2
    return Denoised(sigma_data**2 / norm * z + u / jnp.sqrt(norm) * x0, eps, variance)

  return bounded
