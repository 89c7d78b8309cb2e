"""Rematerialisation: what a block keeps for the backward pass, by name (Chen et al. 2016, 1604.06174)."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax

from jldm.core.errors import UserError


def products(primitive: Any, *shapes: Any, **params: Any) -> bool:
  """Whether an output is that of a convolution, or of a matrix product without batch axes.

  Products with batch axes, as in attention, are computed again.
  """
  dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return primitive is jax.lax.conv_general_dilated_p or dots(primitive, *shapes, **params)


# name -> the values of a block that are kept besides its inputs; the others are computed again
POLICIES = {
  "none": None,  # all
  "dots": products,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def remat(block: Callable, name: str, prevent_cse: bool = True) -> Callable:
  """`block` with the policy of that name: a Module class, or a function whose first argument is a module.

  Parameters do not change.  `prevent_cse` stops the compiler from merging the second computation with
  the first.  It is not needed if the two are in different loops.

  Raises:
    UserError: no policy of that name.
  """
  if name not in POLICIES:
    raise UserError(f"remat={name!r}; expected one of {list(POLICIES)}")
  policy = POLICIES[name]
  return nn.remat(block, policy=policy, prevent_cse=prevent_cse) if policy else block
