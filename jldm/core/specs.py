"""What the parts of the library hand to each other."""

from typing import NamedTuple

import jax

Array = jax.Array


class Output(NamedTuple):
  """What a denoiser's network returns.

  value: the prediction [B, ...].
  log_variance: the learned log-variance of the loss [B], EDM2, Karras et al. 2024 (2312.02696), eq. 21.
  variance: v in [-1, 1] of ancestral steps [B, ...], Nichol & Dhariwal 2021 (2102.09672), eq. 15.
  """

  value: Array
  log_variance: Array | None = None
  variance: Array | None = None
