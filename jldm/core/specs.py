"""What networks return."""

from typing import NamedTuple

import jax

Array = jax.Array


class Output(NamedTuple):
  """A denoiser's output.

  value: what was predicted, float32 of the shape of z.
  log_variance: of the error of `value`, [B, 1, ...] or of its shape; None if it is not learned.
  variance: of the values, of their shape; None if it is not learned.
  """

  value: Array
  log_variance: Array | None = None
  variance: Array | None = None
