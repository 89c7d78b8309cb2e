"""Interpolates latents or noise on the sphere.

High-dimensional normal vectors all have about the same norm; points on the line between two of them do not.
"""

import jax
import jax.numpy as jnp

from jldm.core.shapes import expand

Array = jax.Array


def slerp(a: Array, b: Array, share: Array) -> Array:
  """Interpolates from a (share 0) to b (share 1), per sample: a, b [B, ...], share [] or [B] -> [B, ...].

  The direction follows the great circle and the norm is linear; for equal norms this is Shoemake 1985.
  The path is straight if the directions are equal or opposite, or a vector is zero.
  """
  axes = tuple(range(1, a.ndim))
  norm = lambda x: jnp.sqrt(jnp.sum(x * x, axes, keepdims=True))
  share = expand(jnp.broadcast_to(share, a.shape[:1]), a)
  norm_a, norm_b = norm(a), norm(b)
  unit_a, unit_b = a / jnp.maximum(norm_a, 1e-12), b / jnp.maximum(norm_b, 1e-12)
  angle = 2 * jnp.arctan2(norm(unit_a - unit_b), norm(unit_a + unit_b))  # exact for small and for wide angles
  curved = (jnp.sin(angle) > 1e-4) & (norm_a > 0) & (norm_b > 0)
  sine = jnp.where(curved, jnp.sin(angle), 1)
  circle = jnp.sin((1 - share) * angle) / sine * unit_a + jnp.sin(share * angle) / sine * unit_b
  return jnp.where(curved, ((1 - share) * norm_a + share * norm_b) * circle, (1 - share) * a + share * b)


def slerp_path(a: Array, b: Array, count: int) -> Array:
  """`count` points from a to b, both [...], ends included: [count, ...]."""
  return jax.vmap(lambda share: slerp(a[None], b[None], share)[0])(jnp.linspace(0, 1, count))
