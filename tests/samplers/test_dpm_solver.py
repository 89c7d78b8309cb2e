import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.diffusion.process import Flow, half_log_snr
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP2M, MultistepState
from jldm.samplers.sample import State
from tests.samplers.gaussian import PROCESSES, gaussian, measured_order, network, start, step

Z = jax.random.normal(jax.random.key(0), (8, 3))
KEYS = jax.random.split(jax.random.key(1), 8)
SOLVER = DPMSolverPP2M()

both = pytest.mark.parametrize("process", PROCESSES, ids=repr)


@both
def test_second_order_down_and_up(process):
  assert abs(measured_order(process, SOLVER) - 2) < 0.15
  assert abs(measured_order(process, SOLVER, low=4.0, high=-4.0) - 2) < 0.15


@both
def test_steps_are_algorithm_2_of_the_paper(process):
  with jax.enable_x64(True):
    z, denoise, times = jnp.asarray(Z, jnp.float64), network(process), jnp.array([0.9, 0.7, 0.4, 0.1])
    state, expected, last, h_last = start(process, SOLVER, z, times[0]), z, None, None
    for t, s in itertools.pairwise(times):
      h = half_log_snr(process, s) - half_log_snr(process, t)
      x0 = denoise(expected, t).x0
      d = x0 if last is None else (1 + h / (2 * h_last)) * x0 - h / (2 * h_last) * last
      expected = process.sigma(s) / process.sigma(t) * expected - process.alpha(s) * (jnp.exp(-h) - 1) * d
      last, h_last = x0, h
      state = step(process, network, SOLVER, state, t, s, KEYS)
      np.testing.assert_allclose(state.z, expected, rtol=1e-10, atol=1e-12)
      np.testing.assert_allclose(state.x0, x0, rtol=1e-10, atol=1e-12)
      assert state.t == t


@both
@pytest.mark.parametrize("t", np.linspace(0.02, 1, 12))
def test_a_history_made_at_the_same_time_is_none(process, t):
  """What a wrapper does after it has changed z, and how every path begins: the stale estimate must not matter."""
  t, s = jnp.float32(t), jnp.float32(t / 2)
  stale = MultistepState(Z, jnp.full_like(Z, 1e6), t)
  restarted = step(process, network, SOLVER, stale, t, s, KEYS).z
  first = step(process, network, DDIM(), start(process, DDIM(), Z, t), t, s, KEYS).z
  np.testing.assert_allclose(restarted, first, rtol=1e-6, atol=1e-6)


@both
def test_the_first_two_and_the_last_step_from_pure_noise_are_first_order(process):
  """An infinite log SNR has no slope: after t = 1 there is one usable estimate only after two steps."""
  def off(times):
    """How far a step is from DDIM's, from the same z, at the last of the times."""
    state = start(process, SOLVER, Z, times[0])
    for t, s in itertools.pairwise(times):
      first = step(process, network, DDIM(), State(state.z, state.x0), t, s, KEYS).z
      state = step(process, network, SOLVER, state, t, s, KEYS)
    return np.abs(np.asarray(state.z) - first).max()

  times = np.array([1.0, 0.8, 0.6, 0.4, 0.0], np.float32)
  assert off(times[:2]) < 1e-6 and off(times[:3]) < 1e-6 and off(times) < 1e-6
  assert off(times[:4]) > 1e-3, "the third corrects"


def test_one_evaluation_a_step():
  calls = []
  denoise = lambda z, t: calls.append(1) or gaussian(Flow())(z, t)
  SOLVER.step(Flow(), denoise, start(Flow(), SOLVER, Z, 0.5), jnp.float32(0.5), jnp.float32(0.25), KEYS)
  assert len(calls) == 1
