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
  """`init` may precompute; `step` takes the state from time t to time s with keys [B], one a sample.

  A state with a history has a field `count` [], how much of it belongs to the path, by which `moved` begins it anew.
  """

  def init(self, process: Process, z: Array, pairs: Array) -> Any: ...
  def step(self, process: Process, denoise: Denoise, state: Any, t: Array, s: Array, keys: Array) -> Any: ...


def walk(
  process: Process,
  denoise: Denoise,
  sampler: Sampler,
  z: Array,
  pairs: Array,
  keys: Array,
  self_conditioning: bool = False,
  keep: Callable[[Any], Any] = lambda state: None,
) -> tuple[Any, Any]:
  """Takes z [B, ...] along pairs (t, s) [N, 2]; keys [B], one a sample from its global index.

  Pairs need not adjoin (discrete DDIM), nor go down (resampling, inversion); where t = s nothing changes.  With
  `self_conditioning` the denoiser is given the last step's estimate of x0, zeros at first.  Returns the state at the last
  s and what `keep` takes of every state, stacked [N, ...].
  """

  def body(state, interval):
    i, t, s = interval
    told = (lambda z, t: denoise(z, t, state.x0)) if self_conditioning else denoise
    after = sampler.step(process, told, state, t, s, fold_each(keys, i))
    after = jax.tree.map(lambda old, new: jnp.where(t == s, old, new), state, after)
    return after, keep(after)

  intervals = jnp.arange(len(pairs)), pairs[:, 0], pairs[:, 1]
  return jax.lax.scan(body, sampler.init(process, z, pairs), intervals)


def sample(
  process: Process, denoise: Denoise, sampler: Sampler, z: Array, pairs: Array, keys: Array, self_conditioning: bool = False
) -> Array:
  """z [B, ...] at the last s of `walk`."""
  return walk(process, denoise, sampler, z, pairs, keys, self_conditioning)[0].z


def start(process: Process, like: Array, pairs: Array, keys: Array) -> tuple[Array, Array]:
  """Pure noise sigma(t0) eps in the shape of `like` [B, ...], and the keys [B] of the path; `keys` [B] are split in two."""
  key_start, key_path = split_each(keys)
  return process.sigma(pairs[0, 0]) * normal(key_start, like), key_path


def draw(
  process: Process, denoise: Denoise, sampler: Sampler, like: Array, pairs: Array, keys: Array, self_conditioning: bool = False
) -> Array:
  """Samples from noise, in the shape of `like` [B, ...]: starts at sigma(t0) eps; keys [B] are split into start and path."""
  z, key_path = start(process, like, pairs, keys)
  return sample(process, denoise, sampler, z, pairs, key_path, self_conditioning)


def trajectory(
  process: Process, denoise: Denoise, sampler: Sampler, like: Array, pairs: Array, keys: Array, self_conditioning: bool = False
) -> tuple[Array, Array]:
  """As `draw`, with the estimate of x0 that every step made on its way: z [B, ...], x0 [N, B, ...]; one pass."""
  z, key_path = start(process, like, pairs, keys)
  state, x0 = walk(process, denoise, sampler, z, pairs, key_path, self_conditioning, lambda state: state.x0)
  return state.z, x0


def moved(state: Any, z: Array, changed: Array | bool = True) -> Any:
  """The state at another z [B, ...]: what a wrapper returns after it changed z.

  The history of a multistep sampler belongs to the path that was left, and starts anew where `changed` [].
  """
  history = {"count": jnp.where(changed, 0, state.count)} if "count" in state._fields else {}
  return state._replace(z=z, **history)


def renoise(process: Process, z: Array, t: Array, s: Array, keys: Array, noise: Array | float = 1.0) -> Array:
  """The forward process from z_t to z_s, s >= t:  r z_t + (sigma_s^2 - r^2 sigma_t^2)^(1/2) eps',  r = alpha_s / alpha_t.

  z [B, ...], t and s [], keys [B]; the fresh noise is multiplied by `noise`.  Unchanged where s = t.
  """
  alpha_t = process.alpha(t)
  ratio = jnp.where(s == t, 1, process.alpha(s) / jnp.where(alpha_t > 0, alpha_t, 1))
  old, new = ratio * process.sigma(t), process.sigma(s)
  fresh = jnp.sqrt(jnp.where(s == t, 0, jnp.maximum((new - old) * (new + old), 0)))
  return ratio * z + noise * fresh * normal(keys, z)
