"""Trees of arrays as arrays by flat name, such as "denoiser/blocks/mlp/in/kernel", and back."""

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
  """The inverse: a tree as `like` (arrays or shapes), with its names, shapes and dtypes.

  Raises:
    UserError: naming what is missing, in surplus, or of another shape or dtype.
  """
  wanted = named_leaves(like)
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
