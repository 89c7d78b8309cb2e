"""What a block keeps for the backward pass: memory against time, by name (Chen et al. 2016, 1604.06174)."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn
import jax

from jldm.core.errors import UserError


def products(primitive: Any, *shapes: Any, **params: Any) -> bool:
  """Whether an output is that of a layer: of a convolution, or of a matrix product without batch axes,
  as attention's are.
  """
  dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return primitive is jax.lax.conv_general_dilated_p or dots(primitive, *shapes, **params)


POLICIES = {  # name -> which values within a block are kept beside its inputs; the others are computed again
  "none": None,  # all
  "dots": products,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def remat(block: Callable, name: str, prevent_cse: bool = True) -> Callable:
  """A Module class, or a function whose first argument is a module, that keeps what the policy of that
  name says.

  Parameters are as without.  `prevent_cse` stops the compiler from merging the second computation
  with the first, which it cannot where they are in two loops.

  Raises:
    UserError: no policy of that name.
  """
  if name not in POLICIES:
    raise UserError(f"remat={name!r}; expected one of {list(POLICIES)}")
  policy = POLICIES[name]
  return nn.remat(block, policy=policy, prevent_cse=prevent_cse) if policy else block
