"""Adding noise between the steps of a sampler, as Restart and RePaint do.

For pairs (t, s) with s > t the step is the forward process from t to s (`renoise` of
jldm.samplers.sample), without an evaluation.  The other pairs are the inner sampler's.  Restart, Xu et
al. 2023 (2306.14878), algorithm 1, and RePaint, Lugmayr et al. 2022 (2201.09865), algorithm 1, are
then grids: `restart` and `repaint` of jldm.samplers.pairs.
"""

import dataclasses
from typing import Any

import jax

from jldm.core.trees import pytree
from jldm.diffusion.process import Process
from jldm.samplers.heun import Heun
from jldm.samplers.sample import Denoise, Sampler, renoise, replace_z

Array = jax.Array


@pytree
@dataclasses.dataclass(frozen=True)
class Resample:
  """Wraps any sampler; a multistep history starts anew after noise was added."""

  sampler: Sampler = Heun()

  def init(self, process: Process, z: Array, pairs: Array) -> Any:
    return self.sampler.init(process, z, pairs)

  def step(self, process: Process, denoise: Denoise, state: Any, t: Array, s: Array, keys: Array) -> Any:
    up = lambda: count_step(replace_z(state, renoise(process, state.z, t, s, keys)))
    down = lambda: self.sampler.step(process, denoise, state, t, s, keys)
    return jax.lax.cond(s > t, up, down)


def count_step(state: Any) -> Any:
  """The state with one step less, of samplers that count the steps that are left."""
  return state._replace(left=state.left - 1) if "left" in state._fields else state
