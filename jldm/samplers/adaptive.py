"""The probability flow to a tolerance: Dormand & Prince's pair of orders 5 and 4, with a step size for
every example.

In the clock Line (jldm.samplers.clock), dy / dtau = eps - x0.  A step is kept where the root mean
square of its error over (atol + rtol |y|) is at most 1, and the next is 0.9 error^(-1/5) times as
long, but between 0.2 and 5: Hairer, Nørsett & Wanner, II.4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jldm.core.shapes import expand
from jldm.diffusion.process import Process
from jldm.samplers.clock import Line
from jldm.samplers.sample import Denoise

Array = jax.Array

NODES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (  # weights of the slopes before; the last row is the step itself
  (1 / 5,),
  (3 / 40, 9 / 40),
  (44 / 45, -56 / 15, 32 / 9),
  (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
  (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
  (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)  # order 5 minus order 4


class Solution(NamedTuple):
  """z at the end, how often the network was asked for each example, and whether it got there."""

  z: Array  # [B, ...]
  evaluations: Array  # int [B]
  done: Array  # bool [B]


class Walk(NamedTuple):
  y: Array  # [B, ...]
  slope: Array  # [B, ...] at y
  tau: Array  # [B]
  step: Array  # [B], signed
  evaluations: Array  # int [B]
  rounds: Array  # []


def solve_adaptive(
  process: Process,
  denoise: Denoise,
  z: Array,
  t: Array,
  s: Array,
  rtol: Array | float = 1e-3,
  atol: Array | float = 1e-3,
  last: float = 1e-3,
  most_steps: int = 1000,
) -> Solution:
  """z [B, ...] from time t to time s, both [], either way; rtol and atol are traced.  `denoise` is
  told a time an example [B].

  At tau below `last` an Euler step ends the path, and one begins it from there, with an error of
  the size of `last`: a network need not say anything at sigma = 0.  The whole batch is evaluated
  until its last example is done, or after `most_steps`; an example whose error is not a number
  stops.
  """
  clock, column = Line(), lambda values: expand(values, z)
  begin, end = (jnp.maximum(clock.tau(process, u), last) for u in (t, s))

  def slope(y: Array, tau: Array) -> Array:
    time = clock.time(process, tau)
    return clock.slope(denoise(column(clock.scale(process, time)) * y, time))

  def going(walk: Walk) -> Array:
    return (walk.tau != end) & jnp.isfinite(walk.step)

  def body(walk: Walk) -> Walk:
    step = jnp.where(jnp.abs(walk.step) > jnp.abs(end - walk.tau), end - walk.tau, walk.step)
    slopes = [walk.slope]
    for node, row in zip(NODES, STAGES):
      y = walk.y + column(step) * sum(weight * k for weight, k in zip(row, slopes))
      slopes.append(slope(y, walk.tau + node * step))
    error = column(step) * sum(weight * k for weight, k in zip(ERROR, slopes))
    tolerance = atol + rtol * jnp.maximum(jnp.abs(walk.y), jnp.abs(y))
    error = jnp.sqrt(jnp.mean((error / tolerance) ** 2, tuple(range(1, z.ndim))))
    running = going(walk)
    accept = running & (error <= 1)
    factor = jnp.clip(0.9 * jnp.maximum(error, 1e-10) ** -0.2, 0.2, 5.0)
    tau = jnp.where(step == end - walk.tau, end, walk.tau + step)
    keep = lambda new, old: jnp.where(column(accept), new, old)
    return Walk(
      keep(y, walk.y),
      keep(slopes[-1], walk.slope),
      jnp.where(accept, tau, walk.tau),
      jnp.where(running, step * factor, walk.step),
      walk.evaluations + 6 * running,
      walk.rounds + 1,
    )

  tau = jnp.broadcast_to(begin, len(z))
  y = z / clock.scale(process, t)
  first = slope(y, tau)
  y = y + (begin - clock.tau(process, t)) * first
  walk = Walk(y, first, tau, 0.05 * (end - tau), jnp.ones(len(z), jnp.int32), jnp.int32(0))
  walk = jax.lax.while_loop(lambda w: jnp.any(going(w)) & (w.rounds < most_steps), body, walk)
  y = walk.y + (clock.tau(process, s) - end) * walk.slope
  return Solution(clock.scale(process, s) * y, walk.evaluations, walk.tau == end)
