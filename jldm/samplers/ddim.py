"""DDIM, Song et al. 2021 (2010.02502).

  (1)  z_s = alpha_s x0 + sqrt(sigma_s^2 - noise^2) eps + noise eps'                                      (their eq. 12)
  (2)  noise = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2)                             (their eq. 16)

eta = 0 is the probability flow, eta = 1 ancestral sampling.  Upward (s > t) the noise is 0.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jldm.core.keys import normal
from jldm.core.trees import pytree
from jldm.diffusion.process import Process
from jldm.samplers.sample import Denoise, State

Array = jax.Array


def ddim_noise(process: Process, t: Array, s: Array) -> Array:
  """Equation (2) at eta = 1, without a division that could be 0 / 0 at an end."""
  whole = (process.alpha(s) * process.sigma(t)) ** 2
  fresh = jnp.maximum(whole - (process.alpha(t) * process.sigma(s)) ** 2, 0)
  return process.sigma(s) * jnp.sqrt(fresh / jnp.maximum(whole, jnp.finfo(whole.dtype).tiny))


@pytree
@dataclasses.dataclass(frozen=True)
class DDIM:
  """First order; eta in [0, 1] is traced."""

  eta: float = 0.0

  def init(self, process: Process, z: Array, pairs: Array) -> State:
    return State(z, jnp.zeros_like(z))

  def step(self, process: Process, denoise: Denoise, state: State, t: Array, s: Array, keys: Array) -> State:
    x0, eps, _ = denoise(state.z, t)
    noise = self.eta * ddim_noise(process, t, s)
    ahead = jnp.sqrt(jnp.maximum(process.sigma(s) ** 2 - noise**2, 0))
    return State(process.alpha(s) * x0 + ahead * eps + noise * normal(keys, eps), x0)
