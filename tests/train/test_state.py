import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jldm.train.ema import Decay, Power
from jldm.train.state import averaged_items, init_state, join_state, split_state

PARAMS = {"w": jnp.array([1.0, 2.0]), "half": jnp.array([3.0], jnp.bfloat16)}


def test_before_the_first_step():
  state = init_state(PARAMS, {"seen": jnp.zeros(())}, optax.adam(1e-3), Decay())
  assert state.step == state.skipped == 0 and state.step.dtype == state.skipped.dtype == jnp.int32
  assert state.params is PARAMS and state.extra == {"seen": 0} and state.opt_state[0].count == 0


@pytest.mark.parametrize("average, count", [(Decay(), 1), (Power(), 2), (Power((0.05, 0.1, 0.2)), 3)])
def test_averages_are_float32_in_buffers_of_their_own(average, count):
  ema = init_state(PARAMS, {}, optax.sgd(1e-3), average).ema
  assert isinstance(ema, tuple) and len(ema) == count
  for one in ema:
    for name, value in PARAMS.items():
      assert one[name].dtype == jnp.float32
      np.testing.assert_array_equal(one[name], np.float32(value))
  assert len({tree["w"].unsafe_buffer_pointer() for tree in (PARAMS, *ema)}) == 1 + count


def test_no_two_leaves_share_a_buffer():
  """Or the state could not be donated."""
  state = init_state(PARAMS, {}, optax.adam(1e-3), Decay())
  assert state.step.unsafe_buffer_pointer() != state.skipped.unsafe_buffer_pointer()


@pytest.mark.parametrize(
  ("extra", "items"), [({}, {"state", "ema"}), ({"seen": jnp.ones(())}, {"state", "ema", "extra"})]
)
def test_a_state_is_divided_into_items_and_joined(extra, items):
  state = init_state(PARAMS, extra, optax.adam(1e-3), Power())
  divided = split_state(state)
  assert divided.keys() == items and {name: divided[name] for name in items - {"state"}} == averaged_items(
    state.ema[0], extra
  )
  assert join_state(divided, extra) == state
