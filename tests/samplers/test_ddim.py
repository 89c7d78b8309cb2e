import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import normal_like, row_keys
from jldm.core.trees import pytree
from jldm.diffusion.process import Flow
from jldm.samplers.ddim import DDIM, noise_kept
from jldm.samplers.grid import uniform
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.sample import State, draw_samples
from tests.compiling import UNOPTIMIZED
from tests.samplers.gaussian import MEAN, PROCESSES, STD, gaussian, measured_order, network, start, step

KEYS = row_keys(jax.random.key(1), jnp.arange(8))
Z = jax.random.normal(jax.random.key(0), (8, 3))
INTERVALS = [(0.9, 0.7), (0.5, 0.1), (0.3, 0.6)]

both = pytest.mark.parametrize("process", PROCESSES, ids=repr)


@pytree
@dataclasses.dataclass(frozen=True)
class WrongDDIM(DDIM):
  """alpha(t) where alpha(s) belongs: it compiles, is finite and has the right shape."""

  def step(self, process, denoise, state, t, s, keys):
    x0, eps, _ = denoise(state.z, t)
    return State(process.alpha(t) * x0 + process.sigma(s) * eps, x0)


@both
def test_first_order_down_and_up(process):
  assert abs(measured_order(process, DDIM()) - 1) < 0.15
  assert abs(measured_order(process, DDIM(), low=4.0, high=-4.0) - 1) < 0.15


@both
def test_a_wrong_rate_is_measured_as_no_order(process):
  assert abs(measured_order(process, WrongDDIM())) < 0.15


@both
def test_it_is_euler_in_z_over_alpha(process):
  for t, s in INTERVALS:
    t, s = jnp.float32(t), jnp.float32(s)
    alpha_t, sigma_t, alpha_s, sigma_s = (
      process.alpha(t),
      process.sigma(t),
      process.alpha(s),
      process.sigma(s),
    )
    eps = network(process)(Z, t).eps
    euler = alpha_s * (Z / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * eps)
    after = step(process, network, DDIM(), start(process, DDIM(), Z, t), t, s, KEYS).z
    np.testing.assert_allclose(after, euler, rtol=1e-5, atol=3e-6)


def test_it_is_euler_in_t_on_the_flow_process():
  process = Flow()
  for t, s in [*INTERVALS, (1.0, 0.4), (0.2, 0.0), (1.0, 0.0), (0.0, 0.5)]:
    x0, eps, _ = network(process)(Z, jnp.float32(t))
    after = step(
      process, network, DDIM(), start(process, DDIM(), Z, t), jnp.float32(t), jnp.float32(s), KEYS
    ).z
    np.testing.assert_allclose(after, Z + (s - t) * (eps - x0), rtol=1e-5, atol=3e-6)


@both
def test_the_noise_of_eta_one_is_the_posterior_s(process):
  """Var[z_s | z_t, x0] of the forward process, DDPM (Ho et al. 2020, 2006.11239, eq. 7) in any process."""
  with jax.enable_x64(True):
    t, s = (x.ravel() for x in jnp.meshgrid(jnp.linspace(0.05, 1, 20), jnp.linspace(0.01, 0.99, 33)))
    t, s = t[s < t], s[s < t]
    between = (process.alpha(t) / process.alpha(s)) ** 2  # z_t = sqrt(between) z_s + noise
    sigma2_t, sigma2_s = process.sigma(t) ** 2, process.sigma(s) ** 2
    expected = (sigma2_t - between * sigma2_s) * sigma2_s / sigma2_t
    np.testing.assert_allclose(
      sigma2_s * (1 - noise_kept(process, t, s) ** 2), expected, rtol=1e-9, atol=1e-15
    )


@both
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "jit"])
def test_all_noise_is_kept_upward_and_in_place_and_none_from_pure_noise(process, compiled):
  """Exactly, in float32 and however it is fused: a rest of 1e-8 under a root is noise of 1e-4."""
  share = jax.jit(noise_kept, static_argnums=0) if compiled else noise_kept
  t = jnp.linspace(0, 1, 1001)
  np.testing.assert_array_equal(share(process, t, t), 1)
  np.testing.assert_array_equal(share(process, t[:-1], t[1:]), 1)
  np.testing.assert_array_equal(share(process, jnp.ones_like(t), t)[:-1], 0)
  np.testing.assert_array_equal(share(process, t, jnp.zeros_like(t))[1:], 0)
  inside = share(process, t[1:], t[:-1])
  assert bool(((inside >= 0) & (inside < 1)).all())


@both
def test_eta_one_draws_from_the_posterior(process):
  """The mean of DDPM's eq. 7 and its variance, with the same noise."""
  for t, s in ((0.9, 0.7), (0.5, 0.1), (1.0, 0.5), (0.6, 0.0)):
    t, s = jnp.float32(t), jnp.float32(s)
    x0 = network(process)(Z, t).x0
    ratio = process.alpha(t) / process.alpha(s)
    sigma2_t, sigma2_s = process.sigma(t) ** 2, process.sigma(s) ** 2
    fresh = sigma2_t - ratio**2 * sigma2_s
    mean = (ratio * sigma2_s * Z + process.alpha(s) * fresh * x0) / sigma2_t
    after = step(process, network, DDIM(1.0), start(process, DDIM(), Z, t), t, s, KEYS).z
    expected = mean + jnp.sqrt(fresh * sigma2_s / sigma2_t) * normal_like(KEYS, Z)
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-5)


def moments(process, eta, times):
  """Mean and variance of (1) on Gaussian data in closed form: every step is affine in z.  Float64."""
  alpha, sigma = (np.asarray(f(times), np.float64) for f in (process.alpha, process.sigma))
  mean, variance = 0.0, sigma[0] ** 2
  for a_t, s_t, a_s, s_s in zip(alpha, sigma, alpha[1:], sigma[1:]):
    spread2 = a_t**2 * STD**2 + s_t**2
    noise2 = eta**2 * s_s**2 * (1 - (a_t * s_s / (a_s * s_t)) ** 2)
    slope = a_s * a_t * STD**2 / spread2 + np.sqrt(s_s**2 - noise2) * s_t / spread2
    mean = a_s * MEAN + slope * (mean - a_t * MEAN)
    variance = slope**2 * variance + noise2
  return mean, variance


@functools.partial(jax.jit, static_argnums=0, compiler_options=UNOPTIMIZED)
def drawn_many(process, sampler, pairs, keys):
  return draw_samples(process, gaussian(process), sampler, jnp.zeros((len(keys), 4)), pairs, keys)


@both
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_moments_of_many_samples_are_the_closed_form(process, eta):
  times, keys = uniform(48), row_keys(jax.random.key(3), jnp.arange(1024))
  drawn = np.asarray(drawn_many(process, DDIM(eta), adjacent_pairs(times), keys), np.float64)
  mean, variance = moments(process, eta, times)
  assert abs(drawn.mean() - mean) < 4 * np.sqrt(variance / drawn.size)
  assert abs(drawn.var() - variance) < 4 * variance * np.sqrt(2 / drawn.size)
  assert abs(mean - MEAN) < 0.02 and abs(np.sqrt(variance) - STD) < 0.05, "and that is nearly the data's own"
