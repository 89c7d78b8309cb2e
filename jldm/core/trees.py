"""Trees: numbers that are traced, names of leaves, and counting them."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError


def pytree(cls: type) -> type:
  """Registers a frozen dataclass: fields are leaves, hence traced, but those that are a `choice` are not.

  `jax.tree_util.register_dataclass` would do, but trees of two classes that it registered are equal
  where their static fields are (jaxlib 0.10.2), and jit then runs, now and then, the program of one
  sampler for another.
  """
  names = [field.name for field in dataclasses.fields(cls) if not field.metadata.get("static")]
  static = [field.name for field in dataclasses.fields(cls) if field.metadata.get("static")]

  def flatten(value):
    leaves = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in names]
    return leaves, tuple(getattr(value, name) for name in static)

  def unflatten(choices, leaves):
    return cls(**dict(zip(names, leaves)), **dict(zip(static, choices)))

  jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
  return cls


def choice(default: Any) -> Any:
  """A field of a `pytree` that is static: another value is another program."""
  return dataclasses.field(default=default, metadata={"static": True})


def leaf_names(tree: Any, separator: str = "/") -> list[str]:
  """The paths of the leaves in order, such as "blocks/mlp/in/kernel"; the path of a single leaf is ""."""
  return [_name(path, separator) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def named_leaves(tree: Any) -> dict[str, Any]:
  """The leaves by path; UserError if two paths read the same."""
  names = leaf_names(tree)
  if len(set(names)) < len(names):
    raise UserError("two arrays of a tree have one name: is there a slash in a key?")
  return dict(zip(names, jax.tree.leaves(tree)))


def map_named(function: Callable[[str, Any], Any], tree: Any) -> Any:
  """The tree of function(path, leaf)."""
  return jax.tree_util.tree_map_with_path(lambda path, leaf: function(_name(path, "/"), leaf), tree)


def _name(path: tuple, separator: str) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=separator)


def count(params: Any) -> int:
  """The number of scalars in a tree of arrays or of shapes."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def traced(tree: Any) -> Any:
  """Numbers and arrays of floats in float32: an int, a float and a numpy scalar would be traced three times.

  Keys stay as they are, and so do arrays of ids: integers and bools with at least one axis.
  """
  stays = lambda x: jnp.ndim(x) and not jnp.issubdtype(jnp.result_type(x), jnp.floating)
  is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(lambda x: x if is_key(x) or stays(x) else jnp.asarray(x, jnp.float32), tree)


def float32(tree: Any) -> Any:
  """A copy with every leaf of floats in float32, in buffers of its own: the original may be donated."""
  dtype_of = lambda x: jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
  return jax.tree.map(lambda x: jnp.array(x, dtype_of(x)), tree)


def parts_of(tree: Any) -> dict[str, Any]:
  """A dict by part as it is; anything else as a dict of one part, named ""."""
  return tree if isinstance(tree, dict) else {"": tree}


def like_parts(parts: dict[str, Any]) -> Any:
  """The inverse of `parts_of`."""
  return parts.get("", parts)
