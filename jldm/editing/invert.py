"""The noise that a deterministic sampler takes to given data: its steps walked from data to noise.

DDIM's inversion, Song et al. 2021 (2010.02502), section 4.3, asks the network at the cleaner end of
each step for what the step down asks at the noisier end, and comes back with an error of the first
order; a sampler of higher order with a smaller one.  EDICT comes back exactly.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.diffusion.process import Process
from jldm.diffusion.target import Denoised
from jldm.editing.edict import EDICT, pair, single
from jldm.samplers.sample import Denoise, Sampler, sample

Array = jax.Array


def invert_latents(
  process: Process, denoise: Denoise, sampler: Sampler, x0: Array, pairs: Array, keys: Array
) -> Array:
  """Latents x0 [B, ..., C] up the pairs that sampling goes down -> noise [B, ..., C]; of EDICT, [B, ..., 2 C].

  pairs [N, 2] or [B, N, 2], keys [B].
  """
  z = pair(x0) if isinstance(sampler, EDICT) else x0
  return sample(process, denoise, sampler, z, reversed_pairs(pairs), keys)


def revert_latents(
  process: Process, denoise: Denoise, sampler: Sampler, z: Array, pairs: Array, keys: Array
) -> Array:
  """Noise that `invert_latents` found, down pairs [N, 2] or [B, N, 2] -> latents [B, ..., C]."""
  x0 = sample(process, denoise, sampler, z, pairs, keys)
  return single(x0) if isinstance(sampler, EDICT) else x0


def reversed_pairs(pairs: Array) -> Array:
  """Pairs [N, 2] or [B, N, 2] in the opposite order, each the other way round."""
  return pairs[..., ::-1, ::-1]


def refuse_noise(process: Process, sampler: Any) -> None:
  """Raises a UserError where a sampler's steps draw noise, so that nothing leads back: two keys on a toy tell."""
  key_z, *keys = jax.random.split(jax.random.key(0), 3)
  denoise = lambda z, t, estimate=None, to=None: Denoised(0.5 * z, 0.5 * z, jnp.zeros_like(z))
  z, pairs = jax.random.normal(key_z, (1, 2, 2, 2)), jnp.array([[0.9, 0.6], [0.6, 0.3], [0.3, 0.6]])
  ends = [sample(process, denoise, sampler, z, pairs, row_keys(key, jnp.arange(1))) for key in keys]
  if not jnp.array_equal(*ends):
    name = type(sampler).__name__
    raise UserError(
      f"{name} draws noise at each step, so that no noise leads back to a picture; use a sampler without"
    )
