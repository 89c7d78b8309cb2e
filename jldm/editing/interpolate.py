"""Between two latents, or two noises, on the sphere: high-dimensional normal numbers all have about
the same norm, and the straight line between two of them does not.
"""

import jax
import jax.numpy as jnp

from jldm.core.shapes import expand

Array = jax.Array


def slerp(a: Array, b: Array, share: Array) -> Array:
  """From a (share 0) to b (share 1), a sample each: a, b [B, ...], share [] or [B] -> [B, ...].

  Directions along the great circle, norms linearly, which is Shoemake's 1985 where they are equal;
  straight where the directions are the same, or opposite, or one is none.
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
  """`count` places from a to b, both [...], ends included: [count, ...]."""
  return jax.vmap(lambda share: slerp(a[None], b[None], share)[0])(jnp.linspace(0, 1, count))
