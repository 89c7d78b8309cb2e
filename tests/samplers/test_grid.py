import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.diffusion.process import half_log_snr
from jldm.samplers.grid import chain, log_snr_uniform, uniform
from tests.samplers.gaussian import PROCESSES


def test_a_chain_adjoins():
  np.testing.assert_array_equal(chain(jnp.array([3.0, 2.0, 1.0, 0.0])), [[3, 2], [2, 1], [1, 0]])


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20, 49, 50, 1000])
def test_uniform_reaches_both_ends_exactly(steps):
  times = np.asarray(uniform(steps))
  assert times.shape == (steps + 1,) and times.dtype == np.float32
  assert times[0] == 1 and times[-1] == 0
  np.testing.assert_allclose(np.diff(times), -1 / steps, atol=2e-7)


def test_uniform_between_times_of_choice():
  np.testing.assert_allclose(uniform(2, 0.2, 0.6), [0.2, 0.4, 0.6], rtol=1e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_log_snr_uniform_is_even_and_goes_towards_the_data(process):
  with jax.enable_x64(True):
    times = log_snr_uniform(process, 10, -4.0, 6.0)
    np.testing.assert_allclose(2 * half_log_snr(process, times), np.linspace(-4, 6, 11), atol=1e-9)
  assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("grid", [uniform, functools.partial(log_snr_uniform, PROCESSES[0])], ids=["t", "log_snr"])
def test_no_steps_are_refused(grid, steps):
  with pytest.raises(UserError, match=f"^steps={steps}; expected at least 1$"):
    grid(steps)
