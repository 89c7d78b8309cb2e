"""Flattens trees of arrays to arrays by name, such as "denoiser/blocks/mlp/in/kernel", and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jldm.core.errors import UserError
from jldm.core.trees import named_leaves


def flatten(tree: Any) -> dict[str, np.ndarray]:
  """Arrays on the host by name; UserError if two have one name."""
  return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


def unflatten(arrays: Mapping[str, np.ndarray], like: Any) -> Any:
  """The inverse of `flatten`: a tree with the names, shapes and dtypes of `like`.

  Raises:
    UserError: arrays are missing, unknown, or of another shape or dtype; it names them.
  """
  wanted = named_leaves(like)
  kind = lambda leaf: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
  mismatches = [f"{name[:80]!r} is in surplus" for name in arrays if name not in wanted]
  for name, leaf in wanted.items():
    if name not in arrays:
      mismatches.append(f"{name} is missing")
    elif kind(arrays[name]) != kind(leaf):
      mismatches.append(f"{name} is {kind(arrays[name])}, expected {kind(leaf)}")
  if mismatches:
    raise UserError(f"{len(mismatches)} arrays do not fit: {'; '.join(mismatches[:3])}")
  return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in wanted])
