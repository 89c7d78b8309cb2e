"""Heun's second-order method on the probability flow, Karras et al. 2022 (2206.00364), algorithm 1.

Every process is, up to a scale, a straight line in its own clock:

  (1)  y = z / (alpha + sigma),   tau = sigma / (alpha + sigma)   gives   y = (1 - tau) x0 + tau eps,   dy/dtau = eps - x0

Taking the trapezoid there, rather than in z / alpha as Karras does, is regular at alpha = 0 and at sigma = 0.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jldm.core.trees import pytree
from jldm.diffusion.process import Process
from jldm.samplers.sample import Denoise, State

Array = jax.Array


@pytree
@dataclasses.dataclass(frozen=True)
class Heun:
  """Two evaluations a step; the step that ends at sigma = 0 is Euler's, as in the paper."""

  def init(self, process: Process, z: Array, pairs: Array) -> State:
    return State(z, jnp.zeros_like(z))

  def step(self, process: Process, denoise: Denoise, state: State, t: Array, s: Array, keys: Array) -> State:
    del keys
    scale = lambda u: process.alpha(u) + process.sigma(u)
    tau = lambda u: process.sigma(u) / scale(u)
    x0, eps, _ = denoise(state.z, t)
    euler = process.alpha(s) * x0 + process.sigma(s) * eps
    x0_s, eps_s, _ = denoise(euler, s)
    heun = euler + 0.5 * scale(s) * (tau(s) - tau(t)) * ((eps_s - x0_s) - (eps - x0))
    return State(jnp.where(process.sigma(s) > 0, heun, euler), x0)
