"""Heun's second-order method on the probability flow, Karras et al. 2022 (2206.00364), algorithm 1.

  (1)  z_s = euler + scale_s (tau_s - tau_t) (slope_s - slope_t) / 2,   slope_s taken at the Euler step

which is the trapezoid in y = z / scale over tau (jldm.samplers.clock).  The paper's own clock is
Ratio; Line, the default, is second order from alpha = 0 as well.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jldm.core.trees import choice, pytree
from jldm.diffusion.process import Process
from jldm.samplers.clock import Clock, Line, euler_step
from jldm.samplers.sample import Denoise, State

Array = jax.Array


@pytree
@dataclasses.dataclass(frozen=True)
class Heun:
  """Two evaluations a step; the step that ends at sigma = 0 is Euler's, as in the paper, with one."""

  clock: Clock = choice(Line())

  def init(self, process: Process, z: Array, pairs: Array) -> State:
    return State(z, jnp.zeros_like(z))

  def step(self, process: Process, denoise: Denoise, state: State, t: Array, s: Array, keys: Array) -> State:
    del keys
    denoised = denoise(state.z, t)
    z = euler_step(process, denoised, s)
    change = self.clock.scale(process, s) * (self.clock.tau(process, s) - self.clock.tau(process, t))
    heun = lambda: z + 0.5 * change * (self.clock.slope(denoise(z, s)) - self.clock.slope(denoised))
    return State(jax.lax.cond((process.sigma(s) > 0) & jnp.isfinite(change), heun, lambda: z), denoised.x0)
