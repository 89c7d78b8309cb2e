"""Shapes: broadcasting a number per sample against data of any rank, and batches of one shape."""

import jax
import numpy as np


def expand(rate: jax.Array, like: jax.Array) -> jax.Array:
  """[B] -> [B, 1, ...], which broadcasts against `like` [B, ...]; a scalar stays as it is."""
  return rate.reshape(rate.shape + (1,) * (like.ndim - rate.ndim)) if rate.ndim else rate


def batch_rows(start: int, batch_size: int, count: int) -> np.ndarray:
  """Rows start, start + 1, ... of `count` rows, int [batch_size].

  The last batch is filled up with the last row, so that all batches have one shape and one program;
  the caller drops what is more than `count`.
  """
  return np.minimum(np.arange(start, start + batch_size), count - 1)
