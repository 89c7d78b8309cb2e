"""Against densities known in closed form: Gaussian data, and a mixture of three in the plane."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.diffusion import likelihood
from jldm.diffusion.likelihood import (
  exact_divergence,
  hutchinson,
  log_density,
  raw_log_density,
  variational_bound,
)
from jldm.diffusion.process import EDM, Cosine, Flow, LinearVP
from tests.compiling import UNOPTIMIZED
from tests.samplers import mixture
from tests.samplers.gaussian import MEAN, STD, flow, gaussian

PROCESSES = [Cosine(), Flow(), LinearVP(), EDM()]
every = pytest.mark.parametrize("process", PROCESSES, ids=repr)
KEYS = row_keys(jax.random.key(3), jnp.arange(8))


def times(process, steps, low=12.0):
  """Even in log SNR from `low` to -8, and on to t = 1; float64 under x64."""
  grid = process.time(jnp.linspace(low, -8.0, steps, dtype=jnp.result_type(float)))
  return jnp.concatenate([grid, jnp.linspace(grid[-1], 1, 9)[1:]])


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=UNOPTIMIZED)
def density(process, make, z, grid):
  return log_density(process, make(process), z, grid, exact_divergence)


def normal_density(z, mean, variance):
  return np.sum(
    -0.5 * (z - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance), tuple(range(1, np.ndim(z)))
  )


def spread(process, t):
  return jnp.sqrt((process.alpha(t) * STD) ** 2 + process.sigma(t) ** 2)


@every
def test_gaussian_data_by_the_flow(process):
  """z_1 is known, and so is the log determinant, D log(spread_1 / spread_low)."""
  with jax.enable_x64(True):
    z, grid = jnp.linspace(-1, 2, 24).reshape(4, 3, 2), times(process, 400)
    low, high = grid[0], grid[-1]
    prior = process.alpha(high) ** 2 + process.sigma(high) ** 2
    expected = normal_density(flow(process, z, low, high), 0, prior) + 6 * np.log(
      spread(process, high) / spread(process, low)
    )
    np.testing.assert_allclose(density(process, gaussian, z, grid), expected, atol=1e-5)
    if process.alpha(high) == 0:
      here = normal_density(z, process.alpha(low) * MEAN, spread(process, low) ** 2)
      np.testing.assert_allclose(density(process, gaussian, z, grid), here, atol=1e-5)


@pytest.mark.parametrize("process", PROCESSES[:2], ids=repr)
def test_a_mixture_by_the_flow(process):
  with jax.enable_x64(True):
    z, grid = mixture.data(jax.random.key(0), 16, jnp.float64), times(process, 400)
    expected = mixture.log_density(process, z, grid[0])
    np.testing.assert_allclose(density(process, mixture.mixture, z, grid), expected, atol=2e-4)
    assert float(jnp.ptp(expected)) > 2


def test_the_flow_is_of_fourth_order():
  with jax.enable_x64(True):
    z, process, errors = jnp.linspace(-1, 2, 8).reshape(8, 1), Cosine(), []
    for steps in (32, 128):
      grid = jnp.linspace(0.1, 0.9, steps + 1)
      variance = process.alpha(grid[-1]) ** 2 + process.sigma(grid[-1]) ** 2
      prior = normal_density(flow(process, z, grid[0], grid[-1]), 0, variance)
      expected = prior + np.log(spread(process, grid[-1]) / spread(process, grid[0]))
      errors.append(np.abs(density(process, gaussian, z, grid) - expected).max())
  assert 3.7 < np.log(errors[0] / errors[1]) / np.log(4) < 4.3


@pytest.mark.slow
def test_one_probe_of_signs_is_exact_where_places_do_not_mix():
  with jax.enable_x64(True):
    process, z = Cosine(), jnp.linspace(-1, 2, 48).reshape(8, 3, 2)
    grid = times(process, 20)
    estimate = log_density(process, gaussian(process), z, grid, hutchinson(KEYS, z))
    np.testing.assert_allclose(estimate, density(process, gaussian, z, grid), rtol=1e-10)


@pytest.mark.parametrize("is_gaussian", [False, True], ids=["signs", "gaussian"])
def test_probes_are_unbiased_and_each_example_draws_its_own(is_gaussian):
  mix = jnp.array([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0], [0.0, 1.0, 0.7]])
  field = jax.jit(lambda z: jnp.tanh(z @ mix) + z**2)
  z = jax.random.normal(jax.random.key(1), (8, 3))
  velocity, divergence = exact_divergence(field, z)
  np.testing.assert_allclose(velocity, field(z), rtol=1e-6)
  np.testing.assert_allclose(
    divergence, jnp.trace(jax.vmap(jax.jacfwd(field))(z), axis1=1, axis2=2), rtol=1e-5, atol=1e-6
  )
  few, many = (hutchinson(KEYS, z, probes, is_gaussian)(field, z)[1] for probes in (1, 20000))
  assert float(jnp.abs(few - divergence).max()) > 0.3
  np.testing.assert_allclose(many, divergence, atol=0.15)
  alone = hutchinson(KEYS[5:6], z[5:6], 1, is_gaussian)(field, z[5:6])[1]
  np.testing.assert_allclose(alone, few[5:6], rtol=1e-5)


def test_standardisation_is_undone():
  mean, std = jnp.array([2.0, -1.0]), jnp.array([0.1, 5.0])
  raw = mean + std * jax.random.normal(jax.random.key(0), (4, 3, 2))
  standard = normal_density((raw - mean) / std, 0, 1)
  np.testing.assert_allclose(
    raw_log_density(standard, std, (3, 2)), normal_density(raw, mean, std**2), rtol=1e-5
  )


def test_a_density_of_one_in_eight_a_value_is_three_bits():
  np.testing.assert_allclose(likelihood.bits_per_dim(jnp.log(jnp.full(2, 0.125)) * 5, 5), 3.0, rtol=1e-6)


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def bound(process, make, x0, grid, keys, samples=None):
  return variational_bound(process, make(process), x0, grid, keys, samples)


def expected_bound(process, x0, grid):
  """The terms for Gaussian data and its exact denoiser, in closed form: E|x0 - x0(z_t)|^2 from
  equation (2) of the helper.
  """
  alpha, sigma = np.asarray(process.alpha(grid)), np.asarray(process.sigma(grid))
  squared = (alpha * STD) ** 2 + sigma**2
  off = np.asarray(x0)[..., None] - MEAN
  # [B, T + 1]
  error = np.sum(off**2 * (sigma**2 / squared) ** 2 + (alpha * STD**2 * sigma / squared) ** 2, 1)
  snr = (alpha / sigma) ** 2
  diffusion = np.sum((snr[:-1] - snr[1:]) / 2 * error[:, 1:], 1)
  high = alpha[-1] ** 2 + sigma[-1] ** 2
  prior = np.sum((alpha[-1] ** 2 * x0**2 + sigma[-1] ** 2) / high - 1 - np.log(sigma[-1] ** 2 / high), 1) / 2
  return prior, diffusion, np.full(len(x0), x0.shape[1] / 2 * np.log(2 * np.pi * np.e / snr[0]))


@pytest.mark.parametrize("process", [Cosine(), EDM()], ids=repr)
@pytest.mark.parametrize("samples", [None, 8], ids=["all steps", "eight steps"])
def test_the_bound_of_gaussian_data_is_the_one_expected(process, samples):
  """Four examples, each under 2048 keys; within five standard errors."""
  with jax.enable_x64(True):
    grid = times(process, 40, low=4.0)
    x0 = jnp.repeat(jnp.linspace(-1, 2, 8).reshape(4, 2), 2048, 0)
    keys = row_keys(jax.random.key(7), jnp.arange(len(x0)))
    out = bound(process, plain, x0, grid, keys, samples)
    expected = expected_bound(process, x0[::2048], grid)
    for each_out, known in zip(out, expected):
      each = np.asarray(each_out).reshape(4, 2048)
      error = each.std(1) / np.sqrt(2048)
      assert (np.abs(each.mean(1) - known) < 5 * error + 1e-9).all()
      assert (error < 0.1 * (1 + np.abs(known))).all()


def plain(process):
  """The denoiser for Gaussian data, at times [] or [B]."""
  denoise = gaussian(process)
  return lambda z, t: jax.vmap(denoise)(z, jnp.broadcast_to(t, len(z)))


def test_the_bound_comes_down_to_the_density_of_a_mixture():
  """Its mean over data is above -log p by a gap that is halved where the steps are doubled."""
  process = Flow()
  with jax.enable_x64(True):
    x0 = mixture.data(jax.random.key(0), 4096, jnp.float64)
    keys = row_keys(jax.random.key(1), jnp.arange(len(x0)))
    truth = -jnp.mean(mixture.log_density(process, x0, jnp.float64(0)))
    gaps = []
    for steps in (50, 100):
      out = bound(process, mixture.mixture, x0, times(process, steps), keys)
      gaps.append(float(jnp.mean(sum(out)) - truth))
  assert gaps[1] > 0.1 and 1.7 < gaps[0] / gaps[1] < 2.4, gaps


@pytest.mark.slow
def test_all_of_it_in_float32():
  process, x0 = Flow(), mixture.data(jax.random.key(0), 8)
  grid = times(process, 100)
  assert grid.dtype == jnp.float32
  terms = bound(process, mixture.mixture, x0, grid, KEYS)
  others = bound(process, mixture.mixture, (x0 + 1).at[3].set(x0[3]), grid, KEYS[::-1].at[3].set(KEYS[3]))
  assert all(term.dtype == jnp.float32 and np.isfinite(term).all() for term in terms)
  assert (np.isclose(others.diffusion, terms.diffusion, rtol=1e-5) == (np.arange(8) == 3)).all()
  logs = density(process, mixture.mixture, x0, grid)
  np.testing.assert_allclose(logs, mixture.log_density(process, x0, grid[0]), atol=2e-2)
