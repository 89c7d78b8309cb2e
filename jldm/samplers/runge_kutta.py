"""The classical fourth-order method of Runge and Kutta on the probability flow, in a clock of
jldm.samplers.clock.
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
class RK4:
  """Four evaluations a step; a step that ends at sigma = 0, or at an infinite tau, is Euler's, with one."""

  clock: Clock = choice(Line())

  def init(self, process: Process, z: Array, pairs: Array) -> State:
    return State(z, jnp.zeros_like(z))

  def step(self, process: Process, denoise: Denoise, state: State, t: Array, s: Array, keys: Array) -> State:
    del keys
    tau_t, tau_s = (self.clock.tau(process, u) for u in (t, s))
    half = 0.5 * (tau_t + tau_s)
    middle = self.clock.time(process, half)
    first = denoise(state.z, t)
    k1 = self.clock.slope(first)

    def slope(u: Array, tau: Array, k: Array) -> Array:
      """At time u, reached from z_t along slope k."""
      z = euler_step(process, first, u) + self.clock.scale(process, u) * (tau - tau_t) * (k - k1)
      return self.clock.slope(denoise(z, u))

    change = self.clock.scale(process, s) * (tau_s - tau_t)
    z = euler_step(process, first, s)

    def classical() -> Array:
      k2 = slope(middle, half, k1)
      k3 = slope(middle, half, k2)
      k4 = slope(s, tau_s, k3)
      return z + change * ((k1 + 2 * k2 + 2 * k3 + k4) / 6 - k1)

    return State(jax.lax.cond((process.sigma(s) > 0) & jnp.isfinite(change), classical, lambda: z), first.x0)
