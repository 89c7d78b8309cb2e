"""Inpainting without training: every step replaces what is known by the noised original.

  (1)  z_s <- known (alpha_s x0 + sigma_s eps) + (1 - known) z_s,   x0_hat <- known x0 + (1 - known) x0_hat

Blended latent diffusion, Avrahami et al. 2023 (2206.02779), algorithm 1; RePaint, Lugmayr et al.
2022 (2201.09865), algorithm 1, is the same along pairs that go up again (`grid.repaint`), around a
sampler that is `Resample`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.keys import split_each
from jldm.core.trees import pytree
from jldm.diffusion.process import Process
from jldm.samplers.pairs import repaint
from jldm.samplers.sample import Denoise, Sampler, first_time, renoise, replace_z, sample

Array = jax.Array

JUMP = 10  # steps, the paper's
MOST_STEPS = 2**20


@pytree
@dataclasses.dataclass(frozen=True)
class InpaintingSampler:
  """Applies (1) after every step of `sampler`; a multistep history starts anew, since z has changed."""

  sampler: Any
  x0: Array  # [B, ..., c] what is known
  known: Array  # [B, ..., 1] 1 where kept, 0 where repainted, soft between

  def init(self, process: Process, z: Array, pairs: Array) -> Any:
    return self.sampler.init(process, z, pairs)

  def step(self, process: Process, denoise: Denoise, state: Any, t: Array, s: Array, keys: Array) -> Any:
    key_step, key_known = split_each(keys)
    state = self.sampler.step(process, denoise, state, t, s, key_step)
    truth = renoise(process, self.x0, jnp.zeros_like(s), s, key_known)
    return replace_z(state, self.blend(truth, state.z))._replace(x0=self.blend(self.x0, state.x0))

  def blend(self, known: Array, unknown: Array) -> Array:
    return self.known * known + (1 - self.known) * unknown


def inpaint_latents(
  process: Process,
  denoise: Denoise,
  sampler: Sampler,
  x0: Array,
  known: Array,
  pairs: Array,
  keys: Array,
  start: Array | None = None,
) -> Array:
  """Latents x0 [B, ..., c], kept where known [B, ..., 1] is 1 and drawn anew where it is 0; keys [B].

  The unknown part starts at `start` [B, ..., c], noised to the first time of pairs [N, 2] or [B, N, 2];
  by default at pure noise.  Returns [B, ..., c], which is x0 where known is 1 if the pairs end at 0.
  """
  key_start, key_path = split_each(keys)
  blended = InpaintingSampler(sampler, x0, known)
  clean, first = blended.blend(x0, jnp.zeros_like(x0) if start is None else start), first_time(pairs)
  z = renoise(process, clean, 0 * first, first, key_start)
  return sample(process, denoise, blended, z, pairs, key_path)


def repaint_pairs(pairs: Array, jump: int | None, repeats: int) -> Array:
  """Adjoining pairs [N, 2] that go over every stretch of `jump` of them `repeats` times.

  By default `jump` is JUMP, or N - 1 if that is less.

  Raises:
    UserError: pairs with gaps, a jump that leaves nothing to repeat, or more than MOST_STEPS steps.
  """
  if not np.array_equal(pairs[1:, 0], pairs[:-1, 1]):
    raise UserError(f"repeats={repeats} with a grid that has gaps; expected a grid whose pairs adjoin")
  steps = len(pairs)
  if steps < 2:
    raise UserError(
      f"repeats={repeats} of {steps} step; there is nothing to go back over: expected steps of 2 or more"
    )
  jump = min(JUMP, steps - 1) if jump is None else jump
  if not 1 <= jump < steps:
    raise UserError(
      f"jump={jump} of {steps} steps; expected 1 to {steps - 1}, so that there is a stretch to repeat"
    )
  total = steps + (repeats - 1) * (jump + 1) * len(range(1, steps + 1 - jump, jump))
  if not 1 <= repeats <= total <= MOST_STEPS:
    raise UserError(
      f"repeats={repeats} and jump={jump} of {steps} steps are {total} steps; expected at most {MOST_STEPS}"
    )
  return repaint(np.append(pairs[:, 0], pairs[-1, 1]), jump, repeats)
