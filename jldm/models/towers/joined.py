"""Two text towers that read one text, joined along the channels, as in Stable Diffusion XL."""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.models.towers.tower import Encoded

Array = jax.Array


class JoinedText(nn.Module):
  """The tokens of two towers side by side, and the vector of the second: Podell et al. 2023 (2307.01952),
  section 2.1.

  Each has ids of its own, those of `first` before those of `second`, as a JoinedTokenizer gives them.
  """

  first: Any
  second: Any

  @property
  def dtype(self) -> str:
    """Of the parameters of both, which are read alike."""
    return self.first.dtype

  @nn.compact
  def __call__(self, ids: Array, mask: Array | None = None) -> Encoded:
    """ids int [B, 2 L] -> tokens [B, L, D_first + D_second] and pooled [B, P].

    Raises:
      UserError: a mask: neither tower of XL has one.
    """
    if mask is not None:
      raise UserError("masked=True with two text towers; expected False, as they were trained")
    before, after = jnp.split(ids, [(ids.shape[1] + 1) // 2], 1)  # [B, L] each
    first, second = self.first(before), self.second(after if after.shape[1] else before)
    return Encoded(jnp.concatenate([first.tokens, second.tokens], -1), second.pooled)
