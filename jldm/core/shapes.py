"""Shapes: broadcasting a number per sample against data of any rank."""

import jax


def expand(rate: jax.Array, like: jax.Array) -> jax.Array:
  """[B] -> [B, 1, ...], which broadcasts against `like` [B, ...]; a scalar stays as it is."""
  return rate.reshape(rate.shape + (1,) * (like.ndim - rate.ndim)) if rate.ndim else rate
