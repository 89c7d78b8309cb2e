"""SDEdit, Meng et al. 2022 (2108.01073), algorithm 1: adds noise up to a time, the strength, and
denoises from there.
"""

import jax
import jax.numpy as jnp

from jldm.core.keys import split_each
from jldm.core.shapes import expand
from jldm.diffusion.process import Process
from jldm.samplers.sample import Denoise, Sampler, first_time, renoise, sample

Array = jax.Array


def shorten_pairs(pairs: Array, strength: Array) -> Array:
  """Scales pairs [N, 2] that start at time 1 to start at `strength` [], in [0, 1].

  N stays, so nothing compiles anew.  For pairs [B, N, 2], strength is [] or [B].
  """
  return expand(jnp.asarray(strength), pairs) * pairs


def vary_latents(
  process: Process, denoise: Denoise, sampler: Sampler, x0: Array, pairs: Array, keys: Array
) -> Array:
  """Latents x0 [B, ...] noised up to the first time and sampled along pairs [N, 2] or [B, N, 2] -> [B,
  ...]; keys [B].

  Pairs that stay at 0 (strength 0) return x0; from pure noise, nothing of x0 is left if alpha(1) = 0.
  """
  key_start, key_path = split_each(keys)
  first = first_time(pairs)
  z = renoise(process, x0, 0 * first, first, key_start)
  return sample(process, denoise, sampler, z, pairs, key_path)
