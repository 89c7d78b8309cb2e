"""An earlier estimate of the data as a condition: self-conditioning, Chen et al. 2022 (2208.04202), section 3.2."""

import jax
import jax.numpy as jnp

Array = jax.Array


def beside(z: Array, estimate: Array | None) -> Array:
  """z [..., C] and the estimate [..., C] (None: zeros) -> [..., 2 C]."""
  return jnp.concatenate([z, jnp.zeros_like(z) if estimate is None else estimate.astype(z.dtype)], -1)
