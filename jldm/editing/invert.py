"""Inversion: runs a deterministic sampler from data to noise, to find the noise that it maps to the data.

DDIM's inversion, Song et al. 2021 (2010.02502), section 4.3, evaluates the network at the cleaner end of
each step, where sampling evaluates it at the noisier end.  The round trip has an error of first order, and
a smaller one with a sampler of higher order.  EDICT is exact.
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
  """Runs latents x0 [B, ..., C] along the reversed pairs -> noise [B, ..., C]; for EDICT, [B, ..., 2 C].

  pairs [N, 2] or [B, N, 2], keys [B].
  """
  z = pair(x0) if isinstance(sampler, EDICT) else x0
  return sample(process, denoise, sampler, z, reversed_pairs(pairs), keys)


def revert_latents(
  process: Process, denoise: Denoise, sampler: Sampler, z: Array, pairs: Array, keys: Array
) -> Array:
  """Samples from the noise of `invert_latents` along pairs [N, 2] or [B, N, 2] -> latents [B, ..., C]."""
  x0 = sample(process, denoise, sampler, z, pairs, keys)
  return single(x0) if isinstance(sampler, EDICT) else x0


def reversed_pairs(pairs: Array) -> Array:
  """Pairs [N, 2] or [B, N, 2] in the opposite order, each the other way round."""
  return pairs[..., ::-1, ::-1]


def refuse_noise(process: Process, sampler: Any) -> None:
  """Raises a UserError if a sampler's steps draw noise: two keys give different ends for a toy denoiser."""
  key_z, *keys = jax.random.split(jax.random.key(0), 3)
  denoise = lambda z, t, estimate=None, to=None: Denoised(0.5 * z, 0.5 * z, jnp.zeros_like(z))
  z, pairs = jax.random.normal(key_z, (1, 2, 2, 2)), jnp.array([[0.9, 0.6], [0.6, 0.3], [0.3, 0.6]])
  ends = [sample(process, denoise, sampler, z, pairs, row_keys(key, jnp.arange(1))) for key in keys]
  if not jnp.array_equal(*ends):
    name = type(sampler).__name__
    raise UserError(
      f"{name} draws noise at each step and cannot be inverted; use a deterministic sampler, such as "
      f"EDICT or DDIM"
    )
