"""DDIM, Song et al. 2021 (2010.02502).

With kept the share of the noise of z_t that ancestral sampling keeps, their eq. 12 with the noise
of their eq. 16 is

  (1)  z_s = alpha_s x0 + sigma_s (sqrt(1 - eta^2 + eta^2 kept^2) eps + eta sqrt(1 - kept^2) eps')
  (2)  kept = alpha_t sigma_s / (alpha_s sigma_t)

eta = 0 is the probability flow, eta = 1 ancestral sampling.  Upward (s > t) and in place (s = t) kept is 1.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jldm.core.keys import normal_like
from jldm.core.trees import pytree
from jldm.diffusion.process import Process
from jldm.samplers.sample import Denoise, State

Array = jax.Array


def noise_kept(process: Process, t: Array, s: Array) -> Array:
  """Equation (2), in [0, 1]: exactly 0 and 1 at its ends, where the roots of (1) enlarge rounding errors."""
  below = process.alpha(s) * process.sigma(t)
  ratio = process.alpha(t) * process.sigma(s) / jnp.maximum(below, jnp.finfo(below.dtype).tiny)
  return jnp.where(s < t, jnp.minimum(ratio, 1), 1)


@pytree
@dataclasses.dataclass(frozen=True)
class DDIM:
  """First order; eta in [0, 1] is traced."""

  eta: float = 0.0

  def init(self, process: Process, z: Array, pairs: Array) -> State:
    return State(z, jnp.zeros_like(z))

  def step(self, process: Process, denoise: Denoise, state: State, t: Array, s: Array, keys: Array) -> State:
    x0, eps, _ = denoise(state.z, t)
    share = noise_kept(process, t, s)
    old = jnp.sqrt((1 - self.eta) * (1 + self.eta) + (self.eta * share) ** 2)
    new = self.eta * jnp.sqrt((1 - share) * (1 + share))
    return State(process.alpha(s) * x0 + process.sigma(s) * (old * eps + new * normal_like(keys, eps)), x0)
