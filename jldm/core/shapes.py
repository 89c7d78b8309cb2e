"""Shapes: how a number a sample meets data of any rank."""

import jax


def expand(rate: jax.Array, like: jax.Array) -> jax.Array:
  """[B] -> [B, 1, ...], ready to multiply `like` [B, ...]; scalars pass through."""
  return rate.reshape(rate.shape + (1,) * (like.ndim - rate.ndim)) if rate.ndim else rate
