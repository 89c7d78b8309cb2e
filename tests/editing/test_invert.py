"""Inversion leads to the noise that the flow comes from, and back; what draws noise is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.diffusion.process import Flow
from jldm.editing.edict import EDICT, pair
from jldm.editing.invert import invert_latents, refuse_noise, reversed_pairs, revert_latents
from jldm.samplers.ddim import DDIM
from jldm.samplers.grid import uniform
from jldm.samplers.pairs import adjacent_pairs
from tests.networks import quick
from tests.samplers.gaussian import FLOWS, MEAN, NOISY, STD, flow, gaussian, network

KEYS = row_keys(jax.random.key(1), jnp.arange(8))
X0 = MEAN + STD * jax.random.normal(jax.random.key(0), (8, 3))


def round_trip(process, make, sampler, pairs):
  def run(pairs):
    z = invert_latents(process, make(process), sampler, X0, pairs, KEYS)
    return z, revert_latents(process, make(process), sampler, z, pairs, KEYS)

  return quick(run)(pairs)


def test_backward_walks_the_same_intervals():
  pairs = adjacent_pairs(uniform(3))
  np.testing.assert_allclose(reversed_pairs(pairs), [[0, 1 / 3], [1 / 3, 2 / 3], [2 / 3, 1]], atol=1e-6)
  np.testing.assert_array_equal(reversed_pairs(reversed_pairs(pairs)), pairs)


@pytest.mark.parametrize("sampler", [*FLOWS, EDICT()], ids=repr)
def test_to_the_noise_of_the_flow_and_back(sampler):
  process, pairs = Flow(), adjacent_pairs(uniform(64))
  z, back = round_trip(process, gaussian, sampler, pairs)
  assert np.abs(z[..., :3] - flow(process, X0, jnp.float32(0), jnp.float32(1))).max() < 0.1
  assert np.abs(back - X0).max() < (1e-5 if isinstance(sampler, EDICT) else 0.05)


def test_ddim_comes_back_with_a_first_order_error_and_edict_with_none():
  process = Flow()
  errors = {
    n: np.abs(round_trip(process, network, DDIM(), adjacent_pairs(uniform(n)))[1] - X0).max()
    for n in (32, 128)
  }
  assert 0.15 < errors[128] / errors[32] < 0.4
  assert np.abs(round_trip(process, network, EDICT(), adjacent_pairs(uniform(32)))[1] - X0).max() < 2e-5


@pytest.mark.parametrize("sampler", FLOWS[:3] + FLOWS[4:5], ids=repr)
def test_what_draws_no_noise_is_let_through(sampler):
  refuse_noise(Flow(), sampler)


@pytest.mark.parametrize("sampler", NOISY, ids=repr)
def test_what_draws_noise_is_refused(sampler):
  with pytest.raises(UserError, match=f"{type(sampler).__name__} draws noise at each step"):
    refuse_noise(Flow(), sampler)


def test_the_pair_begins_with_two_alike():
  np.testing.assert_array_equal(pair(X0), np.concatenate([X0, X0], -1))
