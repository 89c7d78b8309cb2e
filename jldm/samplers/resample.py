"""Going up by fresh noise: what Restart and RePaint do between the steps of a sampler.

Pairs (t, s) with s > t are the forward process from t to s, jldm.samplers.sample.renoise, at no
evaluation; the others are the inner sampler's.  Restart, Xu et al. 2023 (2306.14878), algorithm 1,
and RePaint, Lugmayr et al. 2022 (2201.09865), algorithm 1, are then grids: `restart` and `repaint`
of jldm.samplers.grid.
"""

import dataclasses
from typing import Any

import jax

from jldm.core.trees import pytree
from jldm.diffusion.process import Process
from jldm.samplers.heun import Heun
from jldm.samplers.sample import Denoise, Sampler, moved, renoise

Array = jax.Array


@pytree
@dataclasses.dataclass(frozen=True)
class Resample:
  """Wraps any sampler; a multistep history starts anew after going up."""

  sampler: Sampler = Heun()

  def init(self, process: Process, z: Array, pairs: Array) -> Any:
    return self.sampler.init(process, z, pairs)

  def step(self, process: Process, denoise: Denoise, state: Any, t: Array, s: Array, keys: Array) -> Any:
    up = lambda: passed(moved(state, renoise(process, state.z, t, s, keys)))
    down = lambda: self.sampler.step(process, denoise, state, t, s, keys)
    return jax.lax.cond(s > t, up, down)


def passed(state: Any) -> Any:
  """The state a step later, of samplers that count what is left."""
  return state._replace(left=state.left - 1) if "left" in state._fields else state
