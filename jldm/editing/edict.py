"""EDICT, Wallace et al. 2023 (2211.12446), eqs. 14-15: two coupled states, each moved by what the
network says of the other.

In a clock of jldm.samplers.clock, with a and b the pair in y, f the slope that the network says at
the noisier of both times and dtau = tau_s - tau_t, a step down is

  (1)  a' = a + dtau f(b)         (2)  b' = b + dtau f(a')
  (3)  a'' = mix a' + (1 - mix) b'   (4)  b'' = mix b' + (1 - mix) a''

and a step up undoes (4), (3), (2), (1): exactly, whatever the network, up to rounding.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jldm.core.trees import pytree
from jldm.diffusion.process import Process
from jldm.samplers.clock import Clock, Line
from jldm.samplers.sample import Denoise, State

Array = jax.Array


@pytree
@dataclasses.dataclass(frozen=True)
class EDICT:
  """z is the pair, [B, ..., 2 C]; two evaluations a step.

  Below 1, `mix` draws the two together on the way down, and so parts them on the way up, by 1 /
  mix^2 a step.  The paper's 0.93, 1,400 in 50 steps, takes small latents to noise far from normal,
  and this to what a flow's solver finds.
  """

  mix: float = 0.98
  clock: Clock = dataclasses.field(
    default=Line(), metadata={"static": True}
  )  # the paper's, Ratio, ends where alpha = 0

  def init(self, process: Process, z: Array, pairs: Array) -> State:
    return State(z, jnp.zeros_like(single(z)))

  def step(self, process: Process, denoise: Denoise, state: State, t: Array, s: Array, keys: Array) -> State:
    del keys
    scale, tau = (functools.partial(f, process) for f in (self.clock.scale, self.clock.tau))
    up, noisier, change = s > t, jnp.maximum(t, s), tau(s) - tau(t)
    mix = jnp.where(s == t, 1, self.mix)

    def along(y: Array, other: Array) -> tuple[Array, Array]:
      """(1) or (2), each undone by itself with t and s exchanged."""
      said = denoise(scale(noisier) * other, noisier)
      return y + change * self.clock.slope(said), said.x0

    a, b = jnp.split(state.z / scale(t), 2, -1)
    b = jnp.where(up, (b - (1 - mix) * a) / mix, b)
    a = jnp.where(up, (a - (1 - mix) * b) / mix, a)
    first, second = jnp.where(up, b, a), jnp.where(up, a, b)
    first, _ = along(first, second)
    second, x0 = along(second, first)
    a, b = jnp.where(up, second, first), jnp.where(up, first, second)
    a = jnp.where(up, a, mix * a + (1 - mix) * b)
    b = jnp.where(up, b, mix * b + (1 - mix) * a)
    return State(scale(s) * jnp.concatenate([a, b], -1), x0)


def pair(z: Array) -> Array:
  """[..., C] -> [..., 2 C], both states alike."""
  return jnp.concatenate([z, z], -1)


def single(z: Array) -> Array:
  """[..., 2 C] -> [..., C], the first state."""
  return jnp.split(z, 2, -1)[0]
