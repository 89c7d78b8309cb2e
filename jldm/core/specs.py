"""What parts hand each other: what a network returns."""

from typing import NamedTuple

import jax

Array = jax.Array


class Output(NamedTuple):
  """What a denoising network returns.

  value: [B, ...] in the shape of z.
  log_variance: [B], the learned log-variance of the loss, Karras et al. 2024 (2312.02696), eq. 21.
  variance: [B, ...], v in [-1, 1] of ancestral steps, Nichol & Dhariwal 2021 (2102.09672), eq. 15.
  """

  value: Array
  log_variance: Array | None = None
  variance: Array | None = None
