"""Randomness is a matter of an example's global row: not of its neighbours, of devices or of the batch's
split.
"""

import hashlib
import itertools
import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import fold_each, normal_like, row_keys, seed_key, split_each, stage_keys

KEY = jax.random.key(3)


def same(a, b):
  np.testing.assert_array_equal(jax.random.key_data(a), jax.random.key_data(jnp.stack(list(b))))


def test_splitting_is_folding():
  same(jax.random.split(KEY, 5), [jax.random.fold_in(KEY, i) for i in range(5)])


def test_a_key_a_row():
  rows = jnp.array([0, 7, 123456])
  same(row_keys(KEY, rows), [jax.random.fold_in(KEY, row) for row in (0, 7, 123456)])
  same(row_keys(KEY, jnp.arange(8))[3:6], row_keys(KEY, jnp.arange(3, 6)))


def test_each_key_is_folded_or_split_alone():
  keys = jax.random.split(KEY, 4)
  same(fold_each(keys, 9), [jax.random.fold_in(key, 9) for key in keys])
  parts = split_each(keys, 3)
  assert len(parts) == 3
  for i, part in enumerate(parts):
    same(part, [jax.random.split(key, 3)[i] for key in keys])


def test_normal_draws_every_row_from_its_own_key():
  keys = row_keys(KEY, jnp.arange(6))
  whole = normal_like(keys, jnp.zeros((6, 3, 2)))
  np.testing.assert_array_equal(whole, [jax.random.normal(key, (3, 2)) for key in keys])
  np.testing.assert_array_equal(normal_like(keys[4:], jnp.zeros((2, 3, 2))), whole[4:])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_normal_is_at_least_float32(dtype):
  keys = row_keys(KEY, jnp.arange(2))
  drawn = normal_like(keys, jax.ShapeDtypeStruct((2, 4), dtype))
  assert drawn.dtype == jnp.float32
  np.testing.assert_array_equal(drawn, normal_like(keys, jnp.zeros((2, 4))))


def test_normal_follows_float64():
  with jax.enable_x64(True):
    assert normal_like(row_keys(KEY, jnp.arange(2)), jnp.zeros((2, 4))).dtype == jnp.float64


def test_devices_change_nothing():
  assert jax.device_count() == 8
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows = jnp.arange(16, dtype=jnp.uint32)
  draw = jax.jit(lambda rows: normal_like(row_keys(KEY, rows), jnp.zeros((16, 5))))
  spread = draw(jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data"))))
  assert len(spread.sharding.device_set) == 8
  np.testing.assert_array_equal(spread, draw(rows))


def test_stages_and_seeds_share_no_key():
  both = itertools.product((0, 1, 2), ("autoencoder", "denoiser", "student"))
  keys = [key for seed, stage in both for key in stage_keys(seed, stage)]
  assert len({jax.random.key_data(key).tobytes() for key in keys}) == 27
  number = int.from_bytes(
    hashlib.blake2b(b"denoiser", digest_size=4).digest()
  )  # the same in every process, unlike hash()
  same(
    jnp.stack(stage_keys(5, "denoiser")), jax.random.split(jax.random.fold_in(jax.random.key(5), number), 3)
  )


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_seeds_of_64_bits_are_all_different_and_the_small_ones_are_those_of_jax(impl):
  with jax.default_prng_impl(impl):
    for seed in (0, 5, 2**32 - 1):
      same(seed_key(seed)[None], [jax.random.key(seed)])
    seeds = (0, 5, 2**32, 2**32 + 5, 2**63, np.uint64(2**63 + 1), 2**64 - 1)
    assert len({tuple(np.ravel(jax.random.key_data(seed_key(seed)))) for seed in seeds}) == len(seeds)


@pytest.mark.parametrize("seed", [-1, 1.5, 2**64, float("nan"), float("inf"), True, "3", None])
def test_other_seeds_are_refused(seed):
  with pytest.raises(UserError, match=re.escape(f"seed={seed!r}; expected a whole number from 0 to")):
    seed_key(seed)
