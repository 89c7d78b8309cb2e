import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jldm.diffusion.times import LogitNormal, Uniform

BATCH = 64
STRATUM = np.arange(BATCH, dtype=np.float32) / BATCH
DISTRIBUTIONS = [Uniform(), LogitNormal(), LogitNormal(mean=-0.6, std=1.4)]

each = pytest.mark.parametrize("times", DISTRIBUTIONS, ids=repr)


def cumulative(times, t):
  """The distribution function at t [B], by scipy in float64."""
  t = np.asarray(t, np.float64)
  return t if isinstance(times, Uniform) else stats.norm.cdf(special.logit(t), times.mean, times.std)


@each
@pytest.mark.parametrize("seed", range(4))
def test_every_stratum_has_one_example(times, seed):
  u = np.sort(cumulative(times, times(jax.random.key(seed), STRATUM)))
  shift = u * BATCH - np.arange(BATCH)  # all examples stand at one and the same place of their strata
  assert (shift > -1e-3).all() and (shift < 1 + 1e-3).all()
  np.testing.assert_allclose(shift, shift.mean(), atol=1e-3)


def test_the_histogram_of_strata_is_exactly_uniform():
  for seed in range(20):
    t = np.asarray(Uniform()(jax.random.key(seed), STRATUM))
    assert t.min() >= 0 and t.max() < 1
    np.testing.assert_array_equal(np.bincount((t * BATCH).astype(int), minlength=BATCH), 1)


@functools.cache
def many(times):
  """Times [steps, B] of 1000 steps."""
  return np.asarray(jax.jit(jax.vmap(lambda key: times(key, STRATUM)))(jax.random.split(jax.random.key(0), 1000)))


@each
def test_quantiles_are_those_of_the_distribution(times):
  t = many(times)[:64].ravel()
  frozen = stats.uniform() if isinstance(times, Uniform) else stats.norm(times.mean, times.std)
  values = t if isinstance(times, Uniform) else special.logit(t.astype(np.float64))
  q = np.linspace(0.05, 0.95, 19)
  at = np.quantile(values, q)
  np.testing.assert_allclose(frozen.cdf(at), q, atol=1.5 / BATCH)


@each
def test_steps_differ_and_examples_of_one_row_are_uniform(times):
  for row in (0, 5):
    assert stats.kstest(cumulative(times, many(times)[:, row]), "uniform").pvalue > 1e-3


@each
def test_a_batch_may_be_split_into_processes(times):
  key = jax.random.key(7)
  shares = [times(key, share) for share in (STRATUM[:16], STRATUM[16:32], STRATUM[32:])]
  np.testing.assert_array_equal(np.concatenate(shares), times(key, STRATUM))


@each
def test_times_are_float32_in_the_unit_interval(times):
  t = times(jax.random.key(2), STRATUM)
  assert t.dtype == jnp.float32 and t.shape == (BATCH,)
  assert bool(((t >= 0) & (t <= 1)).all())
  assert hash(times) == hash(type(times)(**vars(times)))
