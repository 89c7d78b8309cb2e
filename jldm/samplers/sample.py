"""The one driver: a `lax.scan` of a sampler's step over pairs of times.

A sampler is a frozen dataclass registered as a pytree: numbers are leaves (traced), choices static.  It goes over an
interval (t, s), never an index, and knows nothing of prompts, scales or rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jldm.core.keys import fold_each, normal, split_each
from jldm.diffusion.process import Process
from jldm.diffusion.target import Denoised

Array = jax.Array
Denoise = Callable[..., Denoised]  # (z [B, ...], t []) -> x0, eps; with self-conditioning (z, t, estimate of x0)


class State(NamedTuple):
  """What a one-step sampler carries; a multistep sampler carries more, but always these."""

  z: Array  # [B, ...]
  x0: Array  # [B, ...] the last estimate of the data: previews, self-conditioning


class Sampler(Protocol):
  """`init` may precompute; `step` takes the state from time t to time s with keys [B], one a sample."""

  def init(self, process: Process, z: Array, pairs: Array) -> Any: ...
  def step(self, process: Process, denoise: Denoise, state: Any, t: Array, s: Array, keys: Array) -> Any: ...


def sample(
  process: Process, denoise: Denoise, sampler: Sampler, z: Array, pairs: Array, keys: Array, self_conditioning: bool = False
) -> Array:
  """Takes z [B, ...] along pairs (t, s) [N, 2]; keys [B], one a sample from its global index.

  Pairs need not adjoin (discrete DDIM), nor go down (resampling, inversion).  With `self_conditioning` the denoiser is
  given the last step's estimate of x0, zeros at first.  Returns z [B, ...] at the last s.
  """

  def body(state, interval):
    i, t, s = interval
    told = (lambda z, t: denoise(z, t, state.x0)) if self_conditioning else denoise
    return sampler.step(process, told, state, t, s, fold_each(keys, i)), None

  intervals = jnp.arange(len(pairs)), pairs[:, 0], pairs[:, 1]
  state, _ = jax.lax.scan(body, sampler.init(process, z, pairs), intervals)
  return state.z


def draw(
  process: Process, denoise: Denoise, sampler: Sampler, like: Array, pairs: Array, keys: Array, self_conditioning: bool = False
) -> Array:
  """Samples from noise, in the shape of `like` [B, ...]: starts at sigma(t0) eps; keys [B] are split into start and path."""
  key_start, key_path = split_each(keys)
  z = process.sigma(pairs[0, 0]) * normal(key_start, like)
  return sample(process, denoise, sampler, z, pairs, key_path, self_conditioning)
