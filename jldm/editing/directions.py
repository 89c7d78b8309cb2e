"""Directions of latents or noise: a coordinate, or the difference of labelled examples.

  (1)  direction = mean of the examples with the attribute - mean of those without
  (2)  control = the same of shuffled labels, less its share of (1), at the norm of (1)

A step of 1 along (1) leads from the mean of the one group to that of the other; a step along (2) has the
same length and nothing to do with the attribute.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def attribute_direction(examples: Array, labels: Array) -> Array:
  """(1): examples [N, ...], labels [N] 1 with the attribute and 0 without, both there -> [...]."""
  share = labels / labels.sum() - (1 - labels) / (1 - labels).sum()
  return jnp.tensordot(share, examples, 1)


def control_directions(examples: Array, labels: Array, keys: Array) -> Array:
  """(2), one per key [K] -> [K, ...], each orthogonal to the attribute's direction."""
  direction = attribute_direction(examples, labels)
  return jax.vmap(
    lambda key: orthogonal_part(attribute_direction(examples, jax.random.permutation(key, labels)), direction)
  )(keys)


def unrelated_directions(direction: Array, keys: Array) -> Array:
  """Random directions orthogonal to `direction` [...], at its norm, one per key [K] -> [K, ...]."""
  normals = jax.vmap(lambda key: jax.random.normal(key, direction.shape, jnp.float32))(keys)
  return jax.vmap(lambda other: orthogonal_part(other, direction))(normals)


def orthogonal_part(other: Array, direction: Array) -> Array:
  """`other` without its share of `direction`, at its norm."""
  other = other - jnp.vdot(other, direction) / jnp.vdot(direction, direction) * direction
  return jnp.linalg.norm(direction) / jnp.linalg.norm(other) * other


def coordinate_direction(
  shape: tuple[int, int, int], channel: int, place: tuple[int, int] | None = None
) -> Array:
  """One channel of latents [h, w, c], everywhere or at a place (row, column): 1 there and 0 elsewhere."""
  return jnp.zeros(shape).at[(*(place or (slice(None), slice(None))), channel)].set(1)


def move_along(z: Array, direction: Array, amounts: Array) -> Array:
  """z + amount direction, both [...], of amounts [A]: [A, ...]."""
  return z + jnp.tensordot(amounts, direction, 0)
