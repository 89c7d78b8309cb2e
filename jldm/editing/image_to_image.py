"""SDEdit, Meng et al. 2022 (2108.01073), algorithm 1: noise is added up to a time, the strength, and taken away again."""

import jax

from jldm.core.keys import split_each
from jldm.diffusion.process import Process
from jldm.samplers.sample import Denoise, Sampler, renoise, sample

Array = jax.Array


def shortened(pairs: Array, strength: Array) -> Array:
  """Pairs [N, 2] from the noise at 1 -> as many from the noise at `strength` [], in [0, 1]: N stays, so nothing compiles."""
  return strength * pairs


def image_to_image(
  process: Process, denoise: Denoise, sampler: Sampler, x0: Array, pairs: Array, keys: Array, self_conditioning: bool = False
) -> Array:
  """Latents x0 [B, ...] noised up to pairs[0, 0] and sampled along pairs [N, 2] -> [B, ...]; keys [B].

  Pairs that stay at 0 (strength 0) return x0; from pure noise, nothing of x0 is left where alpha(1) = 0.
  """
  key_start, key_path = split_each(keys)
  z = renoise(process, x0, 0 * pairs[0, 0], pairs[0, 0], key_start)
  return sample(process, denoise, sampler, z, pairs, key_path, self_conditioning)
