"""Clocks in which the probability flow is an ordinary differential equation without a linear term.

A clock is a variable y = z / scale and its time tau.  In each of them the path from data to noise is a
straight line, so one Euler step is DDIM's:

  (1)  Line:    scale = alpha + sigma,   tau = sigma / scale,   dy / dtau = eps - x0
                y = (1 - tau) x0 + tau eps
  (2)  Ratio:   scale = alpha,           tau = sigma / scale,   dy / dtau = eps
                y = x0 + tau eps

Line is regular at both ends.  Ratio is that of Karras et al. 2022 (2206.00364), eq. 4, and of most
published code.  It is infinite at alpha = 0, where samplers take an Euler step instead.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp

from jldm.diffusion.process import Process
from jldm.diffusion.target import Denoised

Array = jax.Array


class Clock(Protocol):
  """Times [], tau and scale []; `time` is the inverse of `tau`."""

  def scale(self, process: Process, t: Array) -> Array: ...
  def tau(self, process: Process, t: Array) -> Array: ...
  def time(self, process: Process, tau: Array) -> Array: ...
  def slope(self, denoised: Denoised) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Line:
  """Equation (1)."""

  def scale(self, process: Process, t: Array) -> Array:
    return process.alpha(t) + process.sigma(t)

  def tau(self, process: Process, t: Array) -> Array:
    return process.sigma(t) / self.scale(process, t)

  def time(self, process: Process, tau: Array) -> Array:
    return process.time(2 * (jnp.log1p(-tau) - jnp.log(tau)))

  def slope(self, denoised: Denoised) -> Array:
    return denoised.eps - denoised.x0


@dataclasses.dataclass(frozen=True)
class Ratio:
  """Equation (2)."""

  def scale(self, process: Process, t: Array) -> Array:
    return process.alpha(t)

  def tau(self, process: Process, t: Array) -> Array:
    return process.sigma(t) / process.alpha(t)

  def time(self, process: Process, tau: Array) -> Array:
    return process.time(-2 * jnp.log(tau))

  def slope(self, denoised: Denoised) -> Array:
    return denoised.eps


def euler_step(process: Process, denoised: Denoised, s: Array) -> Array:
  """A straight line to time s: the Euler step of every clock, and DDIM's; exact at both ends."""
  return process.alpha(s) * denoised.x0 + process.sigma(s) * denoised.eps
