"""Ancestral sampling, DDPM, Ho et al. 2020 (2006.11239), algorithm 2.

With `noise_kept` of jldm.samplers.ddim the mean and the two bounds of the variance of z_s given z_t are,
eq. 6, 7 and section 3.2,

  (1)  mean = alpha_s x0 + sigma_s kept eps
       small = sigma_s^2 (1 - kept^2),   large = sigma_t^2 (1 - kept^2)
  (2)  log variance = (1 + v) / 2 log large + (1 - v) / 2 log small

where (2), of a learned v in [-1, 1], is eq. 15 of Nichol & Dhariwal 2021 (2102.09672).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.keys import normal_like
from jldm.core.trees import choice, pytree
from jldm.diffusion.process import Process
from jldm.samplers.ddim import noise_kept
from jldm.samplers.sample import Denoise, State

Array = jax.Array

# the standard deviation of z_s by (sigma_t, sigma_s, fresh = (1 - kept^2)^(1/2), v)
VARIANCES = {
  "fixed_small": lambda sigma_t, sigma_s, fresh, v: sigma_s * fresh,
  "fixed_large": lambda sigma_t, sigma_s, fresh, v: sigma_t * fresh,
  "learned_range": lambda sigma_t, sigma_s, fresh, v: (
    sigma_t ** ((1 + v) / 2) * sigma_s ** ((1 - v) / 2) * fresh
  ),
}


@pytree
@dataclasses.dataclass(frozen=True)
class Ancestral:
  """First order; "fixed_small" is DDIM with eta = 1.  Upward (s > t) it is DDIM without noise.

  "learned_range" reads v in [-1, 1] from the denoiser's `variance`, as ADM's networks predict it.

  Raises:
    UserError: an unknown variance_type, or "learned_range" of a network that predicts no variance.
  """

  variance_type: str = choice("fixed_small")

  def __post_init__(self):
    if self.variance_type not in VARIANCES:
      raise UserError(f"variance_type={self.variance_type!r}; expected one of {sorted(VARIANCES)}")

  def init(self, process: Process, z: Array, pairs: Array) -> State:
    return State(z, jnp.zeros_like(z))

  def step(self, process: Process, denoise: Denoise, state: State, t: Array, s: Array, keys: Array) -> State:
    x0, eps, v = denoise(state.z, t)
    if self.variance_type == "learned_range" and (v is None or v.shape != x0.shape):
      raise UserError(
        "variance_type='learned_range', but the network predicts no variance of every value; "
        "expected 'fixed_small' or 'fixed_large'"
      )
    share = noise_kept(process, t, s)
    sigma_t, sigma_s = process.sigma(t), process.sigma(s)
    std = VARIANCES[self.variance_type](sigma_t, sigma_s, jnp.sqrt((1 - share) * (1 + share)), v)
    std = jnp.where(sigma_s > 0, std, 0)
    return State(process.alpha(s) * x0 + sigma_s * share * eps + std * normal_like(keys, eps), x0)
