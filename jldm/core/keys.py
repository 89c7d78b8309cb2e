"""Random keys per example, which depend only on its row in the global batch.

So the random numbers of an example do not depend on devices, processes or the batch size.  A key is
split or folded, never both: `split(k)[i]` equals `fold_in(k, i)`.
"""

import hashlib
import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError

SEEDS = 2**64


def check_seed(seed: Any, name: str = "seed") -> int:
  """A seed as an int; UserError unless it is a whole number of 64 bits."""
  whole = (
    isinstance(seed, numbers.Real) and not isinstance(seed, bool) and seed == seed and abs(seed) <= SEEDS
  )
  if not (whole and seed == int(seed) and 0 <= int(seed) < SEEDS):
    raise UserError(f"{name}={seed!r}; expected a whole number from 0 to {SEEDS - 1}")
  return int(seed)


def seed_key(seed: Any) -> jax.Array:
  """The key [] of a seed, all of its 64 bits: `jax.random.key` drops those above 32 without x64.

  Raises:
    UserError: not a whole number from 0 to 2^64 - 1.
  """
  high, low = divmod(check_seed(seed), 2**32)
  words = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape[0]
  return jax.random.wrap_key_data(np.tile(np.array([high, low], np.uint32), words // 2))


def row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
  """One key per row: key [], rows int [B] -> keys [B]."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def fold_each(keys: jax.Array, number: jax.Array) -> jax.Array:
  """Folds one number [] into every key [B]."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def split_each(keys: jax.Array, parts: int = 2) -> tuple[jax.Array, ...]:
  """Splits every key [B] into `parts` arrays of keys [B]."""
  return tuple(jax.vmap(lambda key: jax.random.split(key, parts), out_axes=1)(keys))


def normal_like(keys: jax.Array, like: jax.Array) -> jax.Array:
  """Standard normal numbers in the shape of `like` [B, ...]; row b depends on keys[b] alone.

  Their dtype is that of `like`, but at least float32.
  """
  dtype = jnp.promote_types(like.dtype, jnp.float32)
  return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], dtype))(keys)


def stage_keys(seed: int, stage: str) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(key_init, key_steps, key_eval) of a stage, by its name; the key of step n is fold_in(key_steps, n)."""
  number = int.from_bytes(hashlib.blake2b(stage.encode(), digest_size=4).digest())
  return tuple(jax.random.split(jax.random.fold_in(seed_key(seed), number), 3))
