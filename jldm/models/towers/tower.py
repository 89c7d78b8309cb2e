"""What a text tower gives: states of its tokens, and one vector for a text."""

from typing import NamedTuple

import jax

Array = jax.Array


class Encoded(NamedTuple):
  """The texts of a batch.

  tokens: [B, L, D], a state per token.
  pooled: [B, P], one vector per text; None if the tower has none.
  """

  tokens: Array
  pooled: Array | None = None
