"""Shapes: broadcasting a number per sample, batches of one shape, results as shapes."""

from collections.abc import Callable
import functools
from typing import Any

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


def trace_shapes(method: Callable, owner: Any, *arrays: Any) -> Any:
  """`jax.eval_shape` of method(owner, *arrays), traced once per owner and shapes.

  Tracing a network takes seconds.  `owner`, such as an objective, is hashable; equal ones give equal shapes.
  """
  leaves, tree = jax.tree.flatten(arrays)
  shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
  return jax.tree.map(lambda shape: shape, _trace_shapes(method, owner, tree, shapes))


@functools.lru_cache(maxsize=64)
def _trace_shapes(method: Callable, owner: Any, tree: Any, shapes: tuple) -> Any:
  return jax.eval_shape(functools.partial(method, owner), *tree.unflatten(shapes))
