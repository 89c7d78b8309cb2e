"""Grids of times, and the pairs (t, s) that a sampler walks."""

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.diffusion.process import Process

Array = jax.Array


def chain(times: Array) -> Array:
  """Times [N + 1] -> adjoining pairs [N, 2]."""
  return jnp.stack([times[:-1], times[1:]], 1)


def uniform(steps: int, start: float = 1.0, end: float = 0.0) -> Array:
  """steps + 1 evenly spaced times from `start` to `end`.

  Raises:
    UserError: steps < 1.
  """
  check_steps(steps)
  return jnp.linspace(start, end, steps + 1)


def log_snr_uniform(process: Process, steps: int, low: float = -4.0, high: float = 4.0) -> Array:
  """steps + 1 times, evenly spaced in log SNR from the noisy end `low` to the clean end `high`.

  Raises:
    UserError: steps < 1.
  """
  check_steps(steps)
  return process.time(jnp.linspace(low, high, steps + 1))


def check_steps(steps: int) -> None:
  if steps < 1:
    raise UserError(f"steps={steps}; expected at least 1")
