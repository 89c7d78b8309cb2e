"""Trees of arrays as arrays by flat name, such as "denoiser/blocks/mlp/in/kernel", and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jldm.core.errors import UserError


def leaf_names(tree: Any) -> list[str]:
  """Of the leaves, in their order; UserError where two are equal."""
  paths = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, _ in jax.tree_util.tree_leaves_with_path(tree)
  ]
  if len(set(paths)) < len(paths):
    raise UserError("two arrays of a tree have one name: is there a slash in a key?")
  return paths


def flatten(tree: Any) -> dict[str, np.ndarray]:
  """Arrays on the host by name."""
  return dict(zip(leaf_names(tree), map(np.asarray, jax.tree.leaves(tree))))


def unflatten(arrays: Mapping[str, np.ndarray], like: Any) -> Any:
  """The inverse: a tree as `like` (arrays or shapes), with its names, shapes and dtypes.

  Raises:
    UserError: naming what is missing, in surplus, or of another shape or dtype.
  """
  wanted = dict(zip(leaf_names(like), jax.tree.leaves(like)))
  kind = lambda leaf: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
  told = [f"{name[:80]!r} is in surplus" for name in arrays if name not in wanted]
  for name, leaf in wanted.items():
    if name not in arrays:
      told.append(f"{name} is missing")
    elif kind(arrays[name]) != kind(leaf):
      told.append(f"{name} is {kind(arrays[name])}, expected {kind(leaf)}")
  if told:
    raise UserError(f"{len(told)} arrays do not fit: {'; '.join(told[:3])}")
  return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])
