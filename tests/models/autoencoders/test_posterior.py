import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.keys import row_keys
from jldm.models.autoencoders.posterior import Gaussian
from tests.networks import quick

RNG = np.random.default_rng(0)
MEAN, LOG_VARIANCE = (jnp.asarray(RNG.normal(size=(2, 1, 2, 3)), jnp.float32) for _ in range(2))
POSTERIOR = Gaussian(MEAN, LOG_VARIANCE)
KEY = jax.random.key(0)


@quick
def many():
  """40,000 samples of each: [N, 2, 1, 2, 3]."""
  keys = row_keys(KEY, jnp.arange(80_000)).reshape(40_000, 2)
  return jax.vmap(POSTERIOR.sample)(keys)


def test_samples_have_its_moments():
  z, std = np.float64(many()), np.exp(0.5 * np.float64(LOG_VARIANCE))
  error = std / np.sqrt(len(z))  # of the mean; that of the standard deviation is smaller by sqrt(2)
  assert (np.abs(z.mean(0) - MEAN) < 5 * error).all()
  assert (np.abs(z.std(0) - std) < 5 * error).all()
  correlations = np.corrcoef(z.reshape(len(z), -1).T) - np.eye(12)
  assert np.abs(correlations).max() < 5 / np.sqrt(len(z))


def test_kl_is_what_samples_say():
  """KL = E_q[log q(z) - log p(z)]."""
  z, mean, variance = np.float64(many()), np.float64(MEAN), np.exp(np.float64(LOG_VARIANCE))
  log_ratio = 0.5 * (z**2 - (z - mean) ** 2 / variance - np.log(variance)).sum((2, 3, 4))
  error = log_ratio.std(0) / np.sqrt(len(z))
  kl = np.asarray(POSTERIOR.kl())
  assert kl.shape == (2,) and (error < 0.01 * kl).all()
  assert (np.abs(kl - log_ratio.mean(0)) < 5 * error).all()


def test_kl_of_the_prior_is_zero():
  assert not Gaussian(jnp.zeros((2, 1, 1, 3)), jnp.zeros((2, 1, 1, 3))).kl().any()


def test_a_sample_depends_on_its_own_key_alone():
  keys = row_keys(KEY, jnp.arange(2))
  sample = quick(lambda posterior, keys: posterior.sample(keys))
  alone = sample(Gaussian(MEAN[1:], LOG_VARIANCE[1:]), keys[1:])
  np.testing.assert_allclose(sample(POSTERIOR, keys)[1:], alone, rtol=1e-6)
