"""Translates from one condition to another: inverts under the first, samples under the second.

Dual diffusion implicit bridges, Su et al. 2023 (2203.08382), algorithm 1, between two conditions of
one network.  Pairs that start below 1 keep coarse structure (`shorten_pairs`).
"""

import jax

from jldm.core.keys import split_each
from jldm.diffusion.process import Process
from jldm.editing.invert import invert_latents, revert_latents
from jldm.samplers.sample import Denoise, Sampler

Array = jax.Array


def translate_latents(
  process: Process, denoise: Denoise, onto: Denoise, sampler: Sampler, x0: Array, pairs: Array, keys: Array
) -> Array:
  """Inverts latents x0 [B, ...] with `denoise` and samples them again with `onto` -> [B, ...].

  pairs [N, 2] or [B, N, 2], keys [B].
  """
  key_up, key_down = split_each(keys)
  z = invert_latents(process, denoise, sampler, x0, pairs, key_up)
  return revert_latents(process, onto, sampler, z, pairs, key_down)
