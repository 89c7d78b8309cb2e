"""The driver, and the laws that every sampler keeps."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import normal_like, row_keys
from jldm.core.specs import Output
from jldm.core.trees import traced
from jldm.diffusion.target import Predict, denoiser
from jldm.samplers.churn import Churn
from jldm.samplers.consistency import Consistency
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.grid import uniform
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.predictor_corrector import PredictorCorrector
from jldm.samplers.sample import draw_samples, sample, trajectory
from tests.compiling import UNOPTIMIZED
from tests.marks import slow_after
from tests.samplers.gaussian import (
  FLOWS,
  IN_RATIO,
  MEAN,
  PROCESSES,
  SAMPLERS,
  gaussian,
  network,
  point,
  start,
  step,
  walk,
)

KEYS = row_keys(jax.random.key(1), jnp.arange(8))
Z = jax.random.normal(jax.random.key(0), (8, 3))
PAIRS = {  # name -> pairs (t, s)
  "one": [(1.0, 0.0)],
  "two": [(1.0, 0.5), (0.5, 0.0)],
  "many": np.asarray(adjacent_pairs(uniform(5))),
  "inside": [(0.999, 0.4), (0.4, 0.01)],
  "apart": [(1.0, 0.6), (0.4, 0.0)],
  "up from data": [(0.0, 0.3), (0.3, 1.0)],
  "up and down": [(1.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.0, 1.0), (1.0, 0.0)],
  "in place": [(1.0, 1.0), (1.0, 0.5), (0.5, 0.5), (0.5, 0.0), (0.0, 0.0)],
}

first, *others = PROCESSES
both = pytest.mark.parametrize(
  "process", [first, *(pytest.param(p, marks=pytest.mark.slow) for p in others)], ids=repr
)
every = pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)


def path(pairs):
  """Pairs as an array; where there are several, steps in place fill them up to five, since every
  length is compiled.
  """
  pairs = np.asarray(pairs, np.float32)
  rest = 5 - len(pairs) if len(pairs) > 1 else 0
  return np.concatenate([pairs, np.full((rest, 2), pairs[-1, 1], np.float32)])


class Spied(NamedTuple):
  z: jax.Array
  x0: jax.Array


class Spy:
  """Adds noise of its keys and of the interval to z, so that what it was handed can be read off."""

  def init(self, process, z, pairs):
    return Spied(z, z)

  def step(self, process, denoise, state, t, s, keys):
    return Spied(state.z + (1 + t + 10 * s) * normal_like(keys, state.z), state.z)


def test_step_i_draws_from_each_key_folded_with_i():
  pairs = jnp.array([[0.9, 0.5], [0.6, 0.2]])
  expected = Z
  for i, (t, s) in enumerate(pairs):
    expected += (1 + t + 10 * s) * jnp.stack(
      [jax.random.normal(jax.random.fold_in(key, i), (3,)) for key in KEYS]
    )
  np.testing.assert_allclose(sample(PROCESSES[0], None, Spy(), Z, pairs, KEYS), expected, rtol=1e-5)


@both
def test_draw_starts_at_sigma_of_the_first_time(process):
  class Still(Spy):
    def step(self, process, denoise, state, t, s, keys):
      return state

  starts, paths = (jnp.stack(part) for part in zip(*(jax.random.split(key) for key in KEYS)))
  for t in (1.0, 0.6):
    eps = jnp.stack([jax.random.normal(key, (3,)) for key in starts])
    begun = draw_samples(process, None, Still(), Z, jnp.array([[t, 0.0]]), KEYS)
    np.testing.assert_allclose(begun, process.sigma(jnp.float32(t)) * eps, rtol=1e-6)
  pairs = jnp.array([[0.6, 0.1]])
  np.testing.assert_allclose(
    draw_samples(process, None, Spy(), Z, pairs, KEYS),
    sample(process, None, Spy(), begun, pairs, paths),
    rtol=1e-6,
  )


@both
@every
def test_finite_in_float32_over_any_pairs(process, sampler):
  for name, pairs in PAIRS.items():
    out = np.asarray(walk(process, network, sampler, Z, path(pairs), KEYS))
    assert out.dtype == np.float32 and np.isfinite(out).all(), name
    assert np.abs(out).max() < (1e8 if sampler in IN_RATIO else 100), name


@both
@every
def test_nothing_happens_where_a_step_goes_nowhere(process, sampler):
  """To the bit."""
  for t in (0.0, 1e-3, 0.5, 1.0):
    still = walk(process, network, sampler, Z, np.full((1, 2), t, np.float32), KEYS)
    np.testing.assert_array_equal(still, Z)


@both
@every
def test_the_step_to_clean_data_is_the_estimate(process, sampler):
  for t in (1.0, 0.5, 0.0):
    after = step(
      process, network, sampler, start(process, sampler, Z, t), jnp.float32(t), jnp.float32(0), KEYS
    )
    np.testing.assert_array_equal(after.z, after.x0)


@both
@pytest.mark.parametrize("sampler", FLOWS, ids=repr)
def test_steps_are_exact_where_the_flow_is_straight(process, sampler):
  """All data at one place: x0 and eps stay as they are in any step, from alpha = 0 and to sigma = 0."""
  for t, s in ((1.0, 0.0), (1.0, 0.5), (0.7, 0.2), (0.3, 0.0), (0.2, 0.9), (0.5, 1.0)):
    t, s = jnp.float32(t), jnp.float32(s)
    z = process.alpha(t) * MEAN + process.sigma(t) * Z
    after = step(process, point, sampler, start(process, sampler, z, t), t, s, KEYS).z
    np.testing.assert_allclose(after, process.alpha(s) * MEAN + process.sigma(s) * Z, atol=5e-6)


@both
@every
def test_a_batch_of_eight_is_four_and_four(process, sampler):
  pairs = path(PAIRS["many"])
  whole = walk(process, network, sampler, Z, pairs, KEYS)
  halves = [walk(process, network, sampler, Z[part], pairs, KEYS[part]) for part in (slice(4), slice(4, 8))]
  np.testing.assert_allclose(whole, jnp.concatenate(halves), rtol=1e-4, atol=1e-4)
  padded = walk(process, network, sampler, Z.at[5:].set(99.0), pairs, KEYS.at[5:].set(KEYS[0]))
  np.testing.assert_allclose(padded[:5], whole[:5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", slow_after(3, SAMPLERS), ids=repr)
def test_jit_changes_nothing(sampler):
  process, pairs = PROCESSES[0], path(PAIRS["two"])
  plain = sample(process, network(process), sampler, Z, pairs, KEYS)
  np.testing.assert_allclose(plain, walk(process, network, sampler, Z, pairs, KEYS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  "make, numbers",
  [
    (DDIM, [(0,), (0.5,), (1.0,), (np.float64(0.25),), (jnp.asarray(0.75),)]),
    (lambda eta: DPMSolverPP(3, eta), [(0,), (0.3,), (1.0,)]),
    (lambda *numbers: Churn(DDIM(), *numbers), [(0.1,), (0.3, 0.5), (0.3, 0.5, 1.5), (0.3, 0.5, 1.5, 1.1)]),
    (lambda *numbers: PredictorCorrector(DDIM(), *numbers), [(0.1,), (0.2,)]),
    (Consistency, [(1,), (0.5,)]),
  ],
  ids=["ddim", "dpmpp", "churn", "predictor_corrector", "consistency"],
)
def test_numbers_that_change_between_calls_compile_nothing(make, numbers):
  traces = []

  @functools.partial(jax.jit, compiler_options=UNOPTIMIZED)
  def run(sampler, keys, pairs):
    traces.append(1)
    return sample(PROCESSES[0], gaussian(PROCESSES[0]), sampler, Z, pairs, keys)

  outs = [run(traced(make(*each)), KEYS, adjacent_pairs(uniform(4))) for each in numbers]
  outs.append(run(traced(make(*numbers[-1])), KEYS[::-1], adjacent_pairs(uniform(4))))
  outs.append(run(traced(make(*numbers[-1])), KEYS, adjacent_pairs(uniform(4, 0.9, 0.1))))
  assert len(traces) == 1
  assert len({np.asarray(out).tobytes() for out in outs}) == len(outs), "and each of them matters"


@pytest.mark.parametrize("sampler", slow_after(6, SAMPLERS), ids=repr)
def test_finite_with_a_network_in_bfloat16_in_any_number_of_steps(sampler):
  """From pure noise to clean data; pairs that go nowhere fill every path up to a thousand, for one
  compilation.
  """
  process, network16 = PROCESSES[0], in_bfloat16
  for steps in (1, 2, 50, 1000):
    pairs = np.concatenate([adjacent_pairs(uniform(steps)), np.zeros((1000 - steps, 2), np.float32)])
    out = np.asarray(walk(process, network16, sampler, Z, pairs, KEYS))
    assert out.dtype == np.float32 and np.isfinite(out).all(), steps
    assert np.abs(out).max() < (1e8 if sampler in IN_RATIO else 20), steps


def in_bfloat16(process):
  network = lambda z, level, *_: Output(
    jnp.sin(3 * z.astype(jnp.bfloat16) + level[:, None].astype(jnp.bfloat16))
  )
  return denoiser(process, Predict("v"), network)


def test_the_estimates_of_a_path_come_with_it():
  process, pairs = PROCESSES[0], adjacent_pairs(uniform(4))
  z, x0 = trajectory(process, network(process), DDIM(), Z, pairs, KEYS)
  np.testing.assert_array_equal(z, draw_samples(process, network(process), DDIM(), Z, pairs, KEYS))
  assert x0.shape == (4, 8, 3)
  np.testing.assert_allclose(x0[-1], z, rtol=1e-6, atol=1e-6)  # the last step goes to its estimate
  one = draw_samples(process, network(process), DDIM(), Z, adjacent_pairs(uniform(1)), KEYS)
  np.testing.assert_allclose(x0[0], one, rtol=1e-5, atol=1e-6)  # what one step would have found
