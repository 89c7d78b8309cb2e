import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jldm.diffusion.process import EDM, Cosine, half_log_snr
from jldm.diffusion.times import LogitNormal, LogNormalSigma, Uniform, sample_times

BATCH = 64
STRATUM = np.arange(BATCH, dtype=np.float32) / BATCH
DISTRIBUTIONS = [Uniform(), LogitNormal(), LogitNormal(mean=-0.6, std=1.4), LogNormalSigma(), LogNormalSigma(0.3, 0.8)]
PROCESS = Cosine()

each = pytest.mark.parametrize("times", DISTRIBUTIONS, ids=repr)


def told(times, t):
  """t [...] in the variable that a distribution is stated in, and that variable's distribution; numpy and scipy, float64."""
  t = np.asarray(t, np.float64)
  if isinstance(times, Uniform):
    return t, stats.uniform()
  value = np.log(np.tan(np.pi * t / 2)) if isinstance(times, LogNormalSigma) else special.logit(t)
  return value, stats.norm(times.mean, times.std)


def cumulative(times, t):
  """The distribution function at t [B]."""
  value, distribution = told(times, t)
  return distribution.cdf(value)


@each
@pytest.mark.parametrize("seed", range(4))
def test_every_stratum_has_one_example(times, seed):
  u = np.sort(cumulative(times, sample_times(times, PROCESS, jax.random.key(seed), STRATUM)[0]))
  shift = u * BATCH - np.arange(BATCH)  # all examples stand at one and the same place of their strata
  assert (shift > -1e-3).all() and (shift < 1 + 1e-3).all()
  np.testing.assert_allclose(shift, shift.mean(), atol=1e-3)


def test_the_histogram_of_strata_is_exactly_uniform():
  for seed in range(20):
    t = np.asarray(sample_times(Uniform(), PROCESS, jax.random.key(seed), STRATUM)[0])
    assert t.min() >= 0 and t.max() < 1
    np.testing.assert_array_equal(np.bincount((t * BATCH).astype(int), minlength=BATCH), 1)


@functools.cache
def many(times):
  """Times [steps, B] of 1000 steps."""
  one = lambda key: sample_times(times, PROCESS, key, STRATUM)[0]
  return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 1000)))


@each
def test_quantiles_are_those_of_the_distribution(times):
  t = many(times)[:64].ravel()
  values, distribution = told(times, t)
  q = np.linspace(0.05, 0.95, 19)
  np.testing.assert_allclose(distribution.cdf(np.quantile(values, q)), q, atol=1.5 / BATCH)


@each
def test_steps_differ_and_examples_of_one_row_are_uniform(times):
  for row in (0, 5):
    assert stats.kstest(cumulative(times, many(times)[:, row]), "uniform").pvalue > 1e-3


@each
def test_a_batch_may_be_split_into_processes(times):
  key = jax.random.key(7)
  shares = [sample_times(times, PROCESS, key, share)[0] for share in (STRATUM[:16], STRATUM[16:32], STRATUM[32:])]
  lanes = 5e-7 if isinstance(times, LogNormalSigma) else 0  # exp and arctan round by their place in a vector
  np.testing.assert_allclose(np.concatenate(shares), sample_times(times, PROCESS, key, STRATUM)[0], rtol=lanes)


@each
def test_times_are_float32_in_the_unit_interval(times):
  t, _ = sample_times(times, PROCESS, jax.random.key(2), STRATUM)
  assert t.dtype == jnp.float32 and t.shape == (BATCH,)
  assert bool(((t >= 0) & (t <= 1)).all())
  assert hash(times) == hash(type(times)(**vars(times)))


@each
def test_the_second_number_is_one_over_the_density(times):
  t, dt_du = sample_times(times, PROCESS, jax.random.key(4), STRATUM)
  inside = (np.asarray(t) > 0.02) & (np.asarray(t) < 0.98)
  t, h = np.asarray(t, np.float64)[inside], 1e-4
  density = (cumulative(times, t + h) - cumulative(times, t - h)) / (2 * h)
  np.testing.assert_allclose(np.asarray(dt_du)[inside] * density, 1, rtol=5e-3)


def test_noise_levels_of_edm_are_log_normal():
  t, _ = sample_times(LogNormalSigma(-1.2, 1.2), EDM(), jax.random.key(0), np.arange(4096, dtype=np.float32) / 4096)
  log_sigma = -np.asarray(half_log_snr(EDM(), t))
  np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [-1.2, 1.2], atol=5e-3)
