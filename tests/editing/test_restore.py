"""Where data are standard normal and the measurement is linear, everything is known in closed form.

(1)  y = A x0 + noise n   gives   x0 | y ~ N(C A' y / noise^2, C),   C = (A'A / noise^2 + 1)^-1
(2)  x0 | z_t, y   has the mean of (1) with the prior of x0 | z_t, which is N(alpha z, sigma^2) on alpha^2 +
sigma^2 = 1
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.diffusion.process import EDM, Cosine, Flow
from jldm.diffusion.target import Denoised
from jldm.editing.restore import condition_on_measurement, conjugate_gradient, restore_latents
from jldm.samplers.ddim import DDIM
from jldm.samplers.grid import uniform
from jldm.samplers.heun import Heun
from jldm.samplers.pairs import adjacent_pairs
from tests.networks import quick

A = np.random.default_rng(0).normal(size=(3, 5))
Y, NOISE = np.array([1.0, -0.5, 2.0]), 0.5


def standard(process):
  """The exact denoiser of standard normal data, in any process."""

  def denoise(z, t, estimate=None, to=None):
    off = z / (process.alpha(t) ** 2 + process.sigma(t) ** 2)
    return Denoised(process.alpha(t) * off, process.sigma(t) * off)

  return denoise


def posterior(mean, variance):
  """Mean and covariance of x0 ~ N(mean [5], variance) given Y."""
  covariance = np.linalg.inv(A.T @ A / NOISE**2 + np.eye(5) / variance)
  return covariance @ (A.T @ Y / NOISE**2 + mean / variance), covariance


@pytest.mark.parametrize("process", [Cosine(), Flow(), EDM()], ids=repr)
def test_the_estimate_is_the_mean_given_both(process):
  with jax.enable_x64(True):
    z = jax.random.normal(jax.random.key(0), (2, 5), jnp.float64)
    measured = jnp.broadcast_to(jnp.asarray(Y), (2, 3))
    conditioned = condition_on_measurement(
      process, standard(process), lambda x: x @ A.T, measured, jnp.float64(NOISE), 1, 5
    )
    for t in (0.9, 0.5, 0.1):
      alpha, sigma = float(process.alpha(jnp.float64(t))), float(process.sigma(jnp.float64(t)))
      output = conditioned(z, jnp.float64(t))
      square = alpha**2 + sigma**2
      expected = [posterior(alpha * row / square, sigma**2 / square)[0] for row in np.asarray(z)]
      np.testing.assert_allclose(output.x0, expected, rtol=1e-8, atol=1e-9)
      np.testing.assert_allclose(alpha * output.x0 + sigma * output.eps, z, rtol=1e-9)


@pytest.mark.parametrize("sampler", [DDIM(), DDIM(1.0), Heun()], ids=repr)
def test_samples_are_of_the_posterior(sampler):
  process, count = Flow(), 4096
  keys = row_keys(jax.random.key(1), jnp.arange(count))
  like, measured = jnp.zeros((count, 5)), jnp.broadcast_to(jnp.float32(Y), (count, 3))
  matrix = jnp.float32(A)
  run = quick(
    lambda: restore_latents(
      process,
      standard(process),
      sampler,
      like,
      lambda x: x @ matrix.T,
      measured,
      jnp.float32(NOISE),
      adjacent_pairs(uniform(64)),
      keys,
    )
  )
  drawn = np.asarray(run())
  mean, covariance = posterior(np.zeros(5), 1.0)
  np.testing.assert_allclose(drawn.mean(0), mean, atol=0.06)
  np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.08)


def test_a_measurement_that_is_not_linear_is_linearised_again():
  process, t = Flow(), jnp.float32(0.5)
  z, measured = jnp.full((1, 4), 0.2), jnp.full((1, 4), 0.6)
  measure = lambda x: jnp.tanh(2 * x)
  conditioned = [
    condition_on_measurement(process, standard(process), measure, measured, jnp.float32(0.01), rounds, 4)
    for rounds in (1, 4)
  ]
  misfit = [float(jnp.abs(measure(denoise(z, t).x0) - measured).max()) for denoise in conditioned]
  assert misfit[1] < 1e-3 < misfit[0]


def test_each_sample_is_solved_by_itself_and_a_solved_one_stays():
  matrices = np.random.default_rng(1).normal(size=(3, 4, 4)).astype(np.float32)
  matrices = matrices @ matrices.swapaxes(1, 2) + np.eye(4, dtype=np.float32)
  b = jnp.asarray(np.random.default_rng(2).normal(size=(3, 4)), jnp.float32).at[1].set(0)
  operator = lambda some: lambda x: jnp.einsum("bij,bj->bi", some, x)
  actual = conjugate_gradient(operator(matrices), b, 8)
  np.testing.assert_allclose(
    actual, np.linalg.solve(matrices, np.asarray(b)[..., None])[..., 0], rtol=1e-3, atol=1e-5
  )
  np.testing.assert_allclose(conjugate_gradient(operator(matrices[:1]), b[:1], 8), actual[:1], rtol=1e-5)
