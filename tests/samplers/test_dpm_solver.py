import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import fold_each
from jldm.diffusion.process import Flow, half_log_snr
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP, DPMSolverPPSingle
from jldm.samplers.grid import uniform
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.sample import State, replace_z
from tests.samplers.gaussian import PROCESSES, gaussian, network, start, step, walk

Z = jax.random.normal(jax.random.key(0), (8, 3))
KEYS = jax.random.split(jax.random.key(1), 8)
SOLVER = DPMSolverPP()

both = pytest.mark.parametrize("process", PROCESSES, ids=repr)


def plain(process, z, x0, t, s):
  """The first term of every update in the paper: sigma_s / sigma_t z - alpha_s (e^-h - 1) x0, and
  -alpha_s (e^-h - 1).
  """
  h = half_log_snr(process, s) - half_log_snr(process, t)
  grown = -process.alpha(s) * jnp.expm1(-h)
  return process.sigma(s) / process.sigma(t) * z + grown * x0, grown, h


@both
def test_steps_are_algorithm_2_of_the_paper(process):
  with jax.enable_x64(True):
    z, denoise, times = jnp.asarray(Z, jnp.float64), network(process), jnp.array([0.9, 0.7, 0.4, 0.1])
    state, expected, last, h_last = start(process, SOLVER, z, times[0]), z, None, None
    for t, s in itertools.pairwise(times):
      x0 = denoise(expected, t).x0
      expected, grown, h = plain(process, expected, x0, t, s)
      if last is not None:
        expected += grown * h / (2 * h_last) * (x0 - last)
      last, h_last = x0, h
      state = step(process, network, SOLVER, state, t, s, KEYS)
      np.testing.assert_allclose(state.z, expected, rtol=1e-10, atol=1e-12)
      np.testing.assert_allclose(state.x0, x0, rtol=1e-10, atol=1e-12)
      assert state.times[0] == t


@both
def test_singlestep_is_algorithm_1_of_the_paper(process):
  """2S with r = 1/2: both of its evaluations are steps here."""
  with jax.enable_x64(True):
    z, denoise = jnp.asarray(Z, jnp.float64), network(process)
    t, s = jnp.float64(0.9), jnp.float64(0.3)
    middle = process.time(half_log_snr(process, t) + half_log_snr(process, s))
    x0 = denoise(z, t).x0
    u, _, _ = plain(process, z, x0, t, middle)
    expected, _, _ = plain(process, z, denoise(u, middle).x0, t, s)  # their D is the middle's estimate alone
    solver = DPMSolverPPSingle()
    state = step(process, network, solver, start(process, solver, z, t), t, middle, KEYS)
    np.testing.assert_allclose(state.z, u, rtol=1e-10)
    state = step(process, network, solver, state, middle, s, KEYS)
    np.testing.assert_allclose(state.z, expected, rtol=1e-10)
    assert int(state.count) == 0, "and the next begins a group"


@both
@pytest.mark.parametrize("solver", [SOLVER, DPMSolverPP(3), DPMSolverPPSingle(3)], ids=repr)
@pytest.mark.parametrize("t", [0.02, 0.5, 1.0])
def test_a_state_that_was_moved_has_no_history(process, solver, t):
  """What a wrapper returns after it has changed z, and how every path begins: stale estimates must not
  matter.
  """
  t, s = jnp.float32(t), jnp.float32(t / 2)
  state = start(process, solver, Z, 1.0)
  for pair in ((1.0, 0.9), (0.9, 0.8)):
    state = step(process, network, solver, state, *jnp.float32(pair), KEYS)
  restarted = step(process, network, solver, replace_z(state, Z), t, s, KEYS).z
  first = step(process, network, DDIM(), start(process, DDIM(), Z, t), t, s, KEYS).z
  np.testing.assert_allclose(restarted, first, rtol=1e-6, atol=1e-6)
  assert (
    np.abs(np.asarray(step(process, network, solver, state, t, s, KEYS).z) - first).max() > 1e-3 or t == 1
  )


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


@both
def test_the_first_order_with_noise_is_ancestral_sampling(process):
  pairs = adjacent_pairs(uniform(5))
  for solver in (DPMSolverPP(1, eta=1.0), DPMSolverPPSingle(1, eta=1.0)):
    np.testing.assert_allclose(
      walk(process, network, solver, Z, pairs, KEYS),
      walk(process, network, DDIM(1.0), Z, pairs, KEYS),
      atol=2e-5,
    )


def test_fewer_steps_left_is_lower_order():
  """Of the last two steps of three inside the ends the first is of order 2, the second of order 1."""
  process, times = PROCESSES[0], jnp.float32([0.8, 0.7, 0.55, 0.45, 0.3])
  third, careful = DPMSolverPP(3), DPMSolverPP(3, lower_order_final=True)
  state = careful.init(process, Z, adjacent_pairs(times))
  for i, (t, s) in enumerate(itertools.pairwise(times)):
    order = (1, 2, 2, 1)[i]
    shorter = state._replace(count=jnp.minimum(state.count, order - 1))  # a history that allows this order
    expected = step(process, network, third, shorter, t, s, KEYS)
    state = step(process, network, careful, state, t, s, KEYS)
    np.testing.assert_allclose(state.z, expected.z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [SOLVER, DPMSolverPP(3, eta=1.0), DPMSolverPPSingle(3)], ids=repr)
def test_one_evaluation_a_step(solver):
  calls = []
  denoise = lambda z, t, estimate=None, to=None: calls.append(1) or gaussian(Flow())(z, t)
  solver.step(Flow(), denoise, start(Flow(), solver, Z, 0.5), jnp.float32(0.5), jnp.float32(0.25), KEYS)
  assert len(calls) == 1


def test_noise_is_fresh_at_every_step():
  state, seen = start(Flow(), DPMSolverPP(2, eta=1.0), Z, 0.9), []
  for i in range(2):
    seen.append(
      step(
        Flow(),
        network,
        DPMSolverPP(2, eta=1.0),
        state,
        jnp.float32(0.9),
        jnp.float32(0.5),
        fold_each(KEYS, i),
      ).z
    )
  assert np.abs(np.asarray(seen[0] - seen[1])).min() > 1e-4


@pytest.mark.parametrize("make", [DPMSolverPP, DPMSolverPPSingle])
@pytest.mark.parametrize("order", [0, 4])
def test_other_orders_are_refused(make, order):
  with pytest.raises(UserError, match=f"^order={order}; expected 1 to 3$"):
    make(order)
