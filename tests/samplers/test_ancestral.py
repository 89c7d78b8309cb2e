import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import normal_like
from jldm.diffusion.process import Cosine, Discrete, LinearBetas
from jldm.samplers.ancestral import Ancestral
from tests.samplers.gaussian import network, start

Z = jax.random.normal(jax.random.key(0), (8, 3))
KEYS = jax.random.split(jax.random.key(1), 8)
INTERVALS = [(0.9, 0.7), (0.5, 0.1), (1.0, 0.5)]


def stepped(process, variance, t, s, v=None):
  sampler, t, s = Ancestral(variance), jnp.float32(t), jnp.float32(s)
  denoise = lambda z, u: network(process)(z, u)._replace(variance=v)
  return sampler.step(process, denoise, start(process, sampler, Z, t), t, s, KEYS).z


def posterior(process, t, s):
  """Mean and both variances of DDPM's eq. 7 and section 3.2, in any process."""
  t, s = jnp.float32(t), jnp.float32(s)
  x0, ratio = network(process)(Z, t).x0, process.alpha(t) / process.alpha(s)
  sigma2_t, sigma2_s = process.sigma(t) ** 2, process.sigma(s) ** 2
  fresh = sigma2_t - ratio**2 * sigma2_s
  return (ratio * sigma2_s * Z + process.alpha(s) * fresh * x0) / sigma2_t, fresh * sigma2_s / sigma2_t, fresh


@pytest.mark.parametrize("process", [Cosine(), Discrete(LinearBetas())], ids=repr)
def test_both_variances_of_the_paper(process):
  for interval in INTERVALS:
    mean, small, large = posterior(process, *interval)
    for variance, expected in (("fixed_small", small), ("fixed_large", large)):
      np.testing.assert_allclose(
        stepped(process, variance, *interval),
        mean + jnp.sqrt(expected) * normal_like(KEYS, Z),
        rtol=1e-5,
        atol=1e-5,
      )


def test_learned_is_between_them_in_logarithms():
  process, interval = Cosine(), (0.7, 0.4)
  mean, small, large = posterior(process, *interval)
  v = jnp.linspace(-1, 1, Z.size).reshape(Z.shape)
  std = jnp.exp(0.5 * ((1 + v) / 2 * jnp.log(large) + (1 - v) / 2 * jnp.log(small)))
  np.testing.assert_allclose(
    stepped(process, "learned_range", *interval, v), mean + std * normal_like(KEYS, Z), rtol=1e-5, atol=1e-5
  )


def test_mistakes():
  with pytest.raises(
    UserError,
    match=r"^variance_type='huge'; expected one of \['fixed_large', 'fixed_small', 'learned_range'\]$",
  ):
    Ancestral("huge")
  with pytest.raises(
    UserError,
    match="the network predicts no variance of every value; expected 'fixed_small' or 'fixed_large'",
  ):
    stepped(Cosine(), "learned_range", 0.7, 0.4)
