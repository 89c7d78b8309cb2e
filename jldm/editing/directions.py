"""Along directions of latents, or of noise: a coordinate, or what sets labelled examples apart.

  (1)  direction = mean of the examples with the attribute - mean of those without
  (2)  control = the same of shuffled labels, less its share of (1), at the norm of (1)

A step of 1 along (1) takes the mean of the one to the mean of the other; (2) is what a step of the same length does that
has nothing to do with the attribute.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def attribute(examples: Array, labels: Array) -> Array:
  """(1): examples [N, ...], labels [N] 1 with the attribute and 0 without, both there -> [...]."""
  share = labels / labels.sum() - (1 - labels) / (1 - labels).sum()
  return jnp.tensordot(share, examples, 1)


def controls(examples: Array, labels: Array, keys: Array) -> Array:
  """(2), one a key [K] -> [K, ...], none with a part along the attribute's."""
  direction = attribute(examples, labels)
  norm = jnp.linalg.norm(direction)

  def control(key: Array) -> Array:
    found = attribute(examples, jax.random.permutation(key, labels))
    found = found - jnp.vdot(found, direction) / norm**2 * direction
    return norm / jnp.linalg.norm(found) * found

  return jax.vmap(control)(keys)


def coordinate(shape: tuple[int, int, int], channel: int, place: tuple[int, int] | None = None) -> Array:
  """One channel of latents [h, w, c], everywhere or at a place (row, column): 1 there and 0 elsewhere."""
  return jnp.zeros(shape).at[(*(place or (slice(None), slice(None))), channel)].set(1)


def along(z: Array, direction: Array, amounts: Array) -> Array:
  """z + amount direction, both [...], of amounts [A]: [A, ...]."""
  return z + jnp.tensordot(amounts, direction, 0)
