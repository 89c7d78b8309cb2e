import jax.numpy as jnp
import numpy as np
import optax

from jldm.train.state import init_state

PARAMS = {"w": jnp.array([1.0, 2.0]), "half": jnp.array([3.0], jnp.bfloat16)}


def test_before_the_first_step():
  state = init_state(PARAMS, {"seen": jnp.zeros(())}, optax.adam(1e-3))
  assert state.step == state.skipped == 0 and state.step.dtype == state.skipped.dtype == jnp.int32
  assert state.params is PARAMS and state.extra == {"seen": 0} and state.opt_state[0].count == 0


def test_the_average_is_float32_in_buffers_of_its_own():
  ema = init_state(PARAMS, {}, optax.sgd(1e-3)).ema
  for name, value in PARAMS.items():
    assert ema[name].dtype == jnp.float32
    np.testing.assert_array_equal(ema[name], np.float32(value))
  assert ema["w"].unsafe_buffer_pointer() != PARAMS["w"].unsafe_buffer_pointer()


def test_no_two_leaves_share_a_buffer():
  """Or the state could not be donated."""
  state = init_state(PARAMS, {}, optax.adam(1e-3))
  assert state.step.unsafe_buffer_pointer() != state.skipped.unsafe_buffer_pointer()
