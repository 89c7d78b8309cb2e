import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jldm.diffusion.process import EDM, Cosine, half_log_snr
from jldm.diffusion.times import MULTIPLIERS, LogitNormal, LogNormalSigma, Uniform, quantiles, sample_times

BATCH = 64
STRATUM = np.arange(BATCH, dtype=np.float32) / BATCH
DISTRIBUTIONS = [
  Uniform(),
  LogitNormal(),
  LogitNormal(logit_mean=-0.6, logit_std=1.4),
  LogNormalSigma(),
  LogNormalSigma(0.3, 0.8),
]
PROCESS = Cosine()

each = pytest.mark.parametrize("times", DISTRIBUTIONS, ids=repr)


def sampled(times, t):
  """t [...] in the variable that a distribution is stated in, and that variable's distribution; numpy
  and scipy, float64.
  """
  t = np.asarray(t, np.float64)
  if isinstance(times, Uniform):
    return t, stats.uniform()
  if isinstance(times, LogNormalSigma):
    return np.log(np.tan(np.pi * t / 2)), stats.norm(times.p_mean, times.p_std)
  return special.logit(t), stats.norm(times.logit_mean, times.logit_std)


def cumulative(times, t):
  """The distribution function at t [B]."""
  value, distribution = sampled(times, t)
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
  values, distribution = sampled(times, t)
  q = np.linspace(0.05, 0.95, 19)
  np.testing.assert_allclose(distribution.cdf(np.quantile(values, q)), q, atol=1.5 / BATCH)


@each
def test_steps_differ_and_examples_of_one_row_are_uniform(times):
  for row in (0, 5):
    assert stats.kstest(cumulative(times, many(times)[:, row]), "uniform").pvalue > 1e-3


@each
def test_a_batch_may_be_split_into_processes(times):
  key = jax.random.key(7)
  shares = [
    sample_times(times, PROCESS, key, share)[0] for share in (STRATUM[:16], STRATUM[16:32], STRATUM[32:])
  ]
  lanes = 5e-7 if isinstance(times, LogNormalSigma) else 0  # exp and arctan round by their place in a vector
  np.testing.assert_allclose(
    np.concatenate(shares), sample_times(times, PROCESS, key, STRATUM)[0], rtol=lanes
  )


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
  t, _ = sample_times(
    LogNormalSigma(-1.2, 1.2), EDM(), jax.random.key(0), np.arange(4096, dtype=np.float32) / 4096
  )
  log_sigma = -np.asarray(half_log_snr(EDM(), t))
  np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [-1.2, 1.2], atol=5e-3)


# Parts that have times of their own: strata permuted by the row.
SIZES = [1, 2, 7, 60, 64, 1000, 4096]


def rows(size):
  return np.arange(size, dtype=np.int32), (np.arange(size) / size).astype(np.float32)


def test_multipliers_are_different_primes_above_any_batch():
  assert len(set(MULTIPLIERS.tolist())) == 512 and MULTIPLIERS.min() > 2**16
  # 268^2 > the largest
  assert all(multiplier % divisor for multiplier in MULTIPLIERS.tolist() for divisor in range(2, 268))


@pytest.mark.parametrize("size", SIZES + [65_536])
def test_permuted_strata_have_one_example_each(size):
  row, stratum = rows(size)
  for seed in range(5):
    place = np.asarray(quantiles(jax.random.key(seed), stratum, row), np.float64) * size
    shift = place.min() % 1
    np.testing.assert_array_equal(np.sort(np.round(place - shift).astype(int) % size), row)
    if size <= 4096:
      np.testing.assert_allclose(np.sort(place) - np.sort(np.round(place - shift)), shift, atol=1e-3)


@functools.cache
def two_parts(size, steps):
  """Quantiles of two parts [2, steps, size], each with its own key in each step."""
  row, stratum = rows(size)
  both = lambda key: jnp.stack([quantiles(k, stratum, row) for k in jax.random.split(key)])
  return np.moveaxis(np.asarray(jax.jit(jax.vmap(both))(jax.random.split(jax.random.key(3), steps))), 0, 1)


@pytest.mark.parametrize("size", [32, 60, 256])
def test_two_parts_are_uncorrelated(size):
  """Over steps their correlation within a batch is 0 in the mean and of the size of chance; without a
  permutation it is 1.
  """
  first, second = two_parts(size, 1000)
  angle = 2 * np.pi * (first - second)  # a constant difference has a resultant of length 1
  resultant = np.abs(np.exp(1j * angle).mean(1))
  assert np.sqrt((resultant**2).mean()) < 2.5 / np.sqrt(size)
  correlation = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(first, second)])
  assert abs(correlation.mean()) < 4 * correlation.std() / np.sqrt(
    1000
  ) and correlation.std() < 2.5 / np.sqrt(size)
  a, b = (np.asarray(quantiles(jax.random.key(seed), rows(size)[1])) for seed in (0, 1))
  assert np.abs(np.exp(2j * np.pi * (a - b)).mean()) > 0.999


def test_pairs_of_quantiles_fill_the_square():
  first, second = two_parts(60, 1000)
  counts, _, _ = np.histogram2d(first.ravel(), second.ravel(), bins=6, range=[[0, 1], [0, 1]])
  np.testing.assert_allclose(counts / counts.mean(), 1, atol=0.05)


@pytest.mark.parametrize("size", [60, 64])
def test_microbatches_and_devices_agree_on_permuted_strata(size):
  key, (row, stratum) = jax.random.key(5), rows(size)
  whole = sample_times(Uniform(), PROCESS, key, stratum, row)[0]
  parts = [slice(i, None, 4) for i in range(4)]
  for part in [*parts, slice(0, 1), slice(7, 8)]:
    np.testing.assert_array_equal(
      sample_times(Uniform(), PROCESS, key, stratum[part], row[part])[0], whole[part]
    )
  mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  run = jax.jit(lambda stratum, row: sample_times(Uniform(), PROCESS, key, stratum, row)[0])
  np.testing.assert_array_equal(run(*jax.device_put((stratum, row), spread)), run(stratum, row))


def test_one_part_is_as_it_was():
  key = jax.random.key(11)
  np.testing.assert_array_equal(
    quantiles(key, STRATUM),
    np.maximum((np.float32(jax.random.uniform(key)) + STRATUM) % np.float32(1), np.float32(2**-24)),
  )
