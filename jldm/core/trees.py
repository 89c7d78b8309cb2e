"""Trees: numbers that are traced, and counting them."""

import math
from typing import Any

import jax
import jax.numpy as jnp

pytree = jax.tree_util.register_dataclass  # numbers are leaves, hence traced; fields marked static are not


def count(params: Any) -> int:
  """The number of scalars in a tree of arrays or of shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def traced(tree: Any) -> Any:
  """Numeric leaves as float32 arrays: an int, a float and a numpy scalar would be traced three times.  Keys stay."""
  is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(lambda x: x if is_key(x) else jnp.asarray(x, jnp.float32), tree)


def float32(tree: Any) -> Any:
  """A copy of every leaf in float32, with buffers of its own (so that the original may be donated)."""
  return jax.tree.map(lambda x: jnp.array(x, jnp.float32), tree)
