"""Samplers that draw noise: on Gaussian data every step is affine in z and in its noise, so that mean
and variance are known.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.diffusion.process import Cosine, Flow
from jldm.samplers import ancestral, consistency, ddim, exponential, predictor_corrector, sample
from jldm.samplers.ancestral import Ancestral
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP, DPMSolverPPSingle
from jldm.samplers.grid import log_snr_uniform, uniform
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.predictor_corrector import PredictorCorrector
from tests.compiling import UNOPTIMIZED
from tests.marks import slow_after
from tests.samplers.gaussian import NOISY, STD, gaussian, network, walk
from tests.samplers.orders import STOCHASTIC, weak_errors

KEYS = row_keys(jax.random.key(1), jnp.arange(8))
Z = jax.random.normal(jax.random.key(0), (8, 3))
AFFINE = [sampler for sampler in NOISY if type(sampler).__name__ != "Resample"] + [
  DPMSolverPP(2, eta=0.4),
  DDIM(0.5),
]


def responses(monkeypatch, process, sampler, pairs):
  """What comes out of a start at 0 without noise, of a start at 1, and of each noise at 1 by itself:
  [2 + draws, 1].
  """

  def run(size):
    drawn = itertools.count(2)
    unit = lambda keys, like: (
      jnp.zeros_like(like).at[next(drawn)].set(1.0) if size else (next(drawn), jnp.zeros_like(like))[1]
    )
    for module in (ancestral, ddim, exponential, consistency, predictor_corrector, sample):
      monkeypatch.setattr(module, "normal_like", unit)
    z = jnp.zeros((max(size, 2), 1)).at[1].set(1.0)
    state, keys = sampler.init(process, z, pairs), jax.random.split(jax.random.key(0), max(size, 2))
    for t, s in pairs:
      state = sampler.step(process, gaussian(process), state, t, s, keys)
    return state.z, next(drawn)

  with jax.enable_x64(True):
    _, draws = run(0)
    reached, _ = run(draws)
  monkeypatch.undo()
  return np.asarray(reached)[:, 0]


def moments(monkeypatch, process, sampler, pairs):
  """Mean and variance of samples: the start has variance sigma(t0)^2, every noise 1, all independent."""
  base, start, *noises = responses(monkeypatch, process, sampler, pairs)
  size = float(process.sigma(pairs[0, 0]))
  return base, (size * (start - base)) ** 2 + sum((noise - base) ** 2 for noise in noises)


@functools.partial(jax.jit, static_argnums=0, compiler_options=UNOPTIMIZED)
def drawn_many(process, sampler, pairs, keys):
  return sample.draw_samples(process, gaussian(process), sampler, jnp.zeros((len(keys), 4)), pairs, keys)


@pytest.mark.parametrize("sampler", slow_after(3, AFFINE), ids=repr)
def test_moments_of_many_samples_are_the_solver_s_own(monkeypatch, sampler):
  process, pairs = Cosine(), adjacent_pairs(uniform(12))
  mean, variance = moments(monkeypatch, process, sampler, pairs)
  drawn = np.asarray(
    drawn_many(process, sampler, pairs, row_keys(jax.random.key(3), jnp.arange(1024))), np.float64
  )
  assert abs(drawn.mean() - mean) < 4 * np.sqrt(variance / drawn.size)
  assert abs(drawn.var() - variance) < 4 * variance * np.sqrt(2 / drawn.size)


slow = lambda *samplers: [pytest.param(sampler, marks=pytest.mark.slow) for sampler in samplers]


@pytest.mark.parametrize(
  "sampler",
  [
    DDIM(1.0),
    Ancestral("fixed_large"),
    *slow(
      DPMSolverPP(2, eta=1.0),
      DPMSolverPP(3, eta=1.0),
      DPMSolverPP(2, eta=0.4),
      DPMSolverPPSingle(2, eta=1.0),
      DDIM(0.5),
      PredictorCorrector(),
    ),
  ],
  ids=repr,
)
def test_the_spread_approaches_the_data_s(monkeypatch, sampler):
  process, errors = Flow(), []
  for steps in (12, 24):
    times = log_snr_uniform(process, steps, -6.0, 6.0)
    _, variance = moments(monkeypatch, process, sampler, adjacent_pairs(times))
    alpha, sigma = float(process.alpha(times[-1])), float(process.sigma(times[-1]))
    errors.append(abs(np.sqrt(variance) - np.hypot(alpha * STD, sigma)))
  assert errors[1] < 0.7 * errors[0] and errors[1] < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STOCHASTIC if name != "Consistency"])
def test_the_error_halves_with_the_step_on_the_mixture(name):
  count = 2**18
  first, second = weak_errors(Cosine(), STOCHASTIC[name], (8, 16), count)
  # |z|^2 over its mean has a deviation of 0.8
  assert abs(second) < 0.6 * abs(first) + 3 * 0.8 / np.sqrt(count)


def test_ddim_of_eta_one_is_ancestral_sampling_with_the_small_variance():
  pairs = adjacent_pairs(uniform(5))
  same = lambda a, b: np.testing.assert_allclose(
    walk(Cosine(), network, a, Z, pairs, KEYS),
    walk(Cosine(), network, b, Z, pairs, KEYS),
    rtol=1e-5,
    atol=1e-5,
  )
  same(DDIM(1.0), Ancestral("fixed_small"))
  with pytest.raises(AssertionError):
    same(DDIM(1.0), Ancestral("fixed_large"))
