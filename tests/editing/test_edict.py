"""Down and up again is where it began, whatever the network and the mix; where the pair is one, it is
DDIM.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.editing.edict import EDICT, pair, single
from jldm.samplers.clock import Ratio
from jldm.samplers.ddim import DDIM
from jldm.samplers.grid import uniform
from jldm.samplers.pairs import adjacent_pairs
from tests.samplers.gaussian import PROCESSES, flow, gaussian, network, walk

KEYS = row_keys(jax.random.key(1), jnp.arange(8))
Z = jax.random.normal(jax.random.key(0), (8, 3))
PAIRS = adjacent_pairs(uniform(8))
both = pytest.mark.parametrize("process", PROCESSES, ids=repr)


@both
@pytest.mark.parametrize("mix", [0.8, 0.93, 1.0])
def test_up_undoes_down_and_down_undoes_up(process, mix):
  twin = jnp.concatenate([Z, Z + 0.1], -1)
  for pairs in (PAIRS, PAIRS[::-1, ::-1]):
    there = walk(process, network, EDICT(mix), twin, pairs, KEYS)
    back = walk(process, network, EDICT(mix), there, pairs[::-1, ::-1], KEYS)
    assert np.abs(there - twin).max() > 0.1
    np.testing.assert_allclose(back, twin, atol=2e-4)


@both
def test_it_converges_to_the_flow(process):
  errors = []
  for steps in (16, 64):
    out = single(walk(process, gaussian, EDICT(), pair(Z), adjacent_pairs(uniform(steps)), KEYS))
    errors.append(np.abs(out - flow(process, Z, jnp.float32(1), jnp.float32(0))).max())
  assert errors[1] < 0.05 and errors[1] < 0.4 * errors[0]


def test_the_first_of_the_pair_moves_as_ddim_where_both_are_alike():
  process, pairs = PROCESSES[0], jnp.array([[0.8, 0.5]])
  alone = walk(process, network, DDIM(), Z, pairs, KEYS)
  np.testing.assert_allclose(
    single(walk(process, network, EDICT(1.0), pair(Z), pairs, KEYS)), alone, atol=1e-5
  )
  other = walk(process, network, EDICT(1.0, Ratio()), pair(Z), pairs, KEYS)
  np.testing.assert_allclose(single(other), alone, atol=1e-5)


@both
def test_in_place_nothing_changes(process):
  twin = jnp.concatenate([Z, Z + 1], -1)
  for t in (0.0, 0.4, 1.0):
    t = jnp.float32(t)
    after = EDICT().step(process, network(process), EDICT().init(process, twin, PAIRS), t, t, KEYS)
    np.testing.assert_allclose(after.z, twin, rtol=1e-6)
