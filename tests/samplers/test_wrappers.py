"""Churn, Resample and PredictorCorrector: samplers around a sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import normal_like, split_each
from jldm.diffusion.process import EDM, Cosine, Discrete, Flow
from jldm.samplers.churn import Churn, karras_gamma
from jldm.samplers.clock import Ratio
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.grid import uniform
from jldm.samplers.heun import Heun
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.predictor_corrector import PredictorCorrector
from jldm.samplers.resample import Resample
from jldm.samplers.sample import renoise, replace_z, scan_steps as run_states
from jldm.samplers.unipc import UniPC
from tests.samplers.gaussian import MEAN, PROCESSES, STD, gaussian, network, start, step, walk

Z = jax.random.normal(jax.random.key(0), (8, 3))
KEYS = jax.random.split(jax.random.key(1), 8)

both = pytest.mark.parametrize("process", PROCESSES, ids=repr)


@both
def test_fresh_noise_is_the_forward_process(process):
  """What has variance spread(t)^2 has spread(s)^2 after it; in place nothing changes."""
  keys = jax.random.split(jax.random.key(2), 50_000)
  for t, s in ((0.2, 0.6), (0.0, 0.5), (0.5, 1.0), (0.0, 1.0)):
    t, s = jnp.float32(t), jnp.float32(s)
    spread = lambda u: np.hypot(process.alpha(u) * STD, process.sigma(u))
    z = process.alpha(t) * MEAN + spread(t) * jax.random.normal(jax.random.key(3), (50_000, 1))
    after = np.asarray(renoise(process, z, t, s, keys))
    assert abs(after.mean() - process.alpha(s) * MEAN) < 0.02 and abs(after.std() - spread(s)) < 0.02
    np.testing.assert_array_equal(renoise(process, z[:8], t, t, KEYS), z[:8])


@both
@pytest.mark.parametrize("inner", [Heun(), DPMSolverPP(), UniPC()], ids=repr)
def test_churn_of_nothing_is_the_sampler_itself(process, inner):
  pairs = adjacent_pairs(uniform(5))
  expected = walk(process, network, inner, Z, pairs, KEYS)
  np.testing.assert_allclose(
    walk(process, network, Churn(inner, gamma=0.0), Z, pairs, KEYS), expected, atol=1e-5
  )
  outside = Churn(inner, gamma=0.3, s_tmin=1e8, s_tmax=1e9)
  np.testing.assert_allclose(walk(process, network, outside, Z, pairs, KEYS), expected, atol=1e-5)
  assert np.abs(walk(process, network, Churn(inner, gamma=0.3), Z, pairs, KEYS) - expected).max() > 1e-2


def test_churn_is_algorithm_2_of_karras():
  """In z = x, their own process: sigma^ = sigma + gamma sigma, noise of (sigma^2 - sigma^2)^(1/2),
  then Heun's step.
  """
  process, gamma, noise = EDM(), 0.2, 1.007
  t, s = jnp.float32(0.6), jnp.float32(0.5)
  sigma = process.sigma(t)
  hat = sigma * (1 + gamma)
  x = 3 * Z
  key_churn, _ = split_each(KEYS)
  raised = x + jnp.sqrt(hat**2 - sigma**2) * noise * normal_like(key_churn, x)
  slope = lambda x, sigma: network(process)(x, process.time(-2 * jnp.log(sigma))).eps
  d = slope(raised, hat)
  euler = raised + (process.sigma(s) - hat) * d
  expected = raised + (process.sigma(s) - hat) * 0.5 * (d + slope(euler, process.sigma(s)))
  sampler = Churn(Heun(Ratio()), gamma=gamma, s_noise=noise)
  after = step(process, network, sampler, start(process, sampler, x, t), t, s, KEYS).z
  np.testing.assert_allclose(after, expected, rtol=2e-4, atol=2e-4)


def test_churn_cannot_leave_a_chain():
  process = Discrete()
  sampler = Churn(Heun(), gamma=0.4)
  after = step(
    process, network, sampler, start(process, sampler, Z, 1.0), jnp.float32(1), jnp.float32(0.9), KEYS
  ).z
  plain = step(
    process, network, Heun(), start(process, Heun(), Z, 1.0), jnp.float32(1), jnp.float32(0.9), KEYS
  ).z
  np.testing.assert_allclose(after, plain, rtol=1e-5)


def test_gamma_of_karras():
  assert (
    karras_gamma(0, 20) == 0
    and karras_gamma(2, 20) == 0.1
    and abs(karras_gamma(80, 18) - (2**0.5 - 1)) < 1e-12
  )


@both
def test_resampling_goes_up_by_noise_and_down_by_the_sampler(process):
  sampler = Resample(DPMSolverPP())
  t, s = jnp.float32(0.4), jnp.float32(0.8)
  up = step(process, network, sampler, start(process, sampler, Z, t)._replace(count=jnp.int32(1)), t, s, KEYS)
  np.testing.assert_allclose(up.z, renoise(process, Z, t, s, KEYS), rtol=1e-6)
  assert int(up.count) == 0, "the history is that of another path"
  pairs = adjacent_pairs(uniform(4))
  np.testing.assert_allclose(
    walk(process, network, sampler, Z, pairs, KEYS),
    walk(process, network, DPMSolverPP(), Z, pairs, KEYS),
    atol=1e-5,
  )


def test_what_is_left_is_counted_by_steps_that_go_somewhere():
  """Up, down and in place; at the end nothing is left."""
  inner = DPMSolverPP(3, lower_order_final=True)
  pairs = jnp.float32([[0.9, 0.6], [0.6, 0.6], [0.6, 0.8], [0.8, 0.3]])
  state = inner.init(Cosine(), Z, pairs)
  assert int(state.left) == 3
  final, _ = run_states(Cosine(), network(Cosine()), Resample(inner), Z, pairs, KEYS)
  assert int(final.left) == 0


@both
def test_langevin_leaves_the_right_distribution_and_finds_it(process):
  """In place, at a fixed time: variance stays within first order of the step, and a wrong one is drawn to
  it.
  """
  s, keys = jnp.float32(0.5), jax.random.split(jax.random.key(4), 20_000)
  spread = float(jnp.hypot(process.alpha(s) * STD, process.sigma(s)))
  right = float(process.alpha(s)) * MEAN + spread * jax.random.normal(jax.random.key(5), (20_000, 1))
  sampler = PredictorCorrector(DDIM(), step_size=0.02, correct_steps=1)
  after = step(process, gaussian, sampler, start(process, sampler, right, s), s, s, keys).z
  assert abs(float(after.std()) - spread) < 0.02 * spread
  longer = PredictorCorrector(DDIM(), step_size=0.1, correct_steps=30)
  wide = step(process, gaussian, longer, start(process, longer, 2 * right, s), s, s, keys).z
  assert abs(float(wide.std()) - spread) < 0.1 * spread, "twice as wide before"


def test_no_correction_of_clean_data():
  process = Flow()
  after = [
    step(process, network, sampler, start(process, sampler, Z, 0.3), jnp.float32(0.3), jnp.float32(0), KEYS).z
    for sampler in (PredictorCorrector(DDIM()), DDIM())
  ]
  np.testing.assert_array_equal(*after)


def test_moved_begins_a_history_anew_where_it_changed():
  process, t = Cosine(), jnp.float32(0.9)
  state = step(
    process, network, DPMSolverPP(), start(process, DPMSolverPP(), Z, t), t, jnp.float32(0.5), KEYS
  )
  assert int(state.count) == 1
  assert int(replace_z(state, Z).count) == 0 and int(replace_z(state, Z, False).count) == 1
  np.testing.assert_array_equal(replace_z(state, Z).z, Z)
  plain = start(process, DDIM(), Z, t)
  assert replace_z(plain, 2 * Z)._fields == ("z", "x0")
