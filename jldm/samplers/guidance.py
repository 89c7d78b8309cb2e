"""Guidance: several conditions in one batched pass."""

from typing import Any

import jax
import jax.numpy as jnp

from jldm.core.shapes import expand
from jldm.diffusion.target import Denoised
from jldm.samplers.sample import Denoise

Array = jax.Array


def guided(denoise, conditions: Any, weights: Array) -> Denoise:
  """K conditions [K, B, ...] in one pass, combined by weights [K, B] or [K, 1] that sum to one.

  Conditions stand beside their sample (row b K + k), so that a batch sharded over devices never moves.
  """

  def combined(z: Array, t: Array, *estimate: Array) -> Denoised:
    count, batch = len(weights), len(z)
    beside = jax.tree.map(lambda c: jnp.moveaxis(c, 0, 1).reshape((-1,) + c.shape[2:]), conditions)  # [B K, ...]
    each = denoise(jnp.repeat(z, count, 0), t, beside, *(jnp.repeat(e, count, 0) for e in estimate))
    split = lambda e: e.reshape((batch, count) + e.shape[1:])
    mix = lambda e: jnp.sum(expand(jnp.broadcast_to(weights.T, (batch, count)), split(e)) * split(e), 1)
    first = None if each.log_variance is None else split(each.log_variance)[:, 0]
    return Denoised(mix(each.x0), mix(each.eps), first)

  return combined


def classifier_free(denoise, condition: Any, null: Any, guidance_scale: Array) -> Denoise:
  """Ho & Salimans 2022 (2207.12598), eq. 6: null + guidance_scale (condition - null).

  condition and null [B, ...], guidance_scale [] or [B]: 1 is the condition alone, 0 none.
  """
  scale = jnp.atleast_1d(guidance_scale)
  return guided(denoise, jax.tree.map(lambda *c: jnp.stack(c), condition, null), jnp.stack([scale, 1 - scale]))
