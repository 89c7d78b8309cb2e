"""Randomness that depends on an example's global place alone.

A key is split or folded, never both: `split(k)[i]` *is* `fold_in(k, i)`.  Every draw of an example
comes from the key of its row in the global batch, so that neither devices nor processes nor the
batch size change it.
"""

import hashlib

import jax
import jax.numpy as jnp


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
  """One key a row: key [], rows int [B] -> keys [B]."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def fold_each(keys: jax.Array, number: jax.Array) -> jax.Array:
  """Every key [B] folded with one number []."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def split_each(keys: jax.Array, parts: int = 2) -> tuple[jax.Array, ...]:
  """Every key [B] split: `parts` arrays of keys [B]."""
  return tuple(jax.vmap(lambda key: jax.random.split(key, parts), out_axes=1)(keys))


def normal_like(keys: jax.Array, like: jax.Array) -> jax.Array:
  """Standard normal in the shape of `like` [B, ...], in its dtype but at least float32; row b from
  keys[b] alone.
  """
  dtype = jnp.promote_types(like.dtype, jnp.float32)
  return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], dtype))(keys)


def stage_keys(seed: int, stage: str) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The keys of a stage by its name: (key_init, key_steps, key_eval); the key of step n is
  fold_in(key_steps, n).
  """
  number = int.from_bytes(hashlib.blake2b(stage.encode(), digest_size=4).digest())
  return tuple(jax.random.split(jax.random.fold_in(jax.random.key(seed), number), 3))
