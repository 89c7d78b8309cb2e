import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.diffusion.process import EDM, Cosine, Flow
from jldm.diffusion.target import Denoised
from jldm.samplers.adaptive import solve_adaptive
from tests.compiling import UNOPTIMIZED
from tests.samplers.gaussian import flow, gaussian, network
from tests.samplers.mixture import mixture

Z = jnp.linspace(-2, 2, 9)[:, None]


def each(process):
  """The Gaussian's denoiser for a time an example."""
  return lambda z, t: gaussian(process)(z, t[:, None])


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=UNOPTIMIZED)
def solve(process, make, z, t, s, tolerance):
  return solve_adaptive(process, make(process), z, t, s, tolerance, tolerance)


@pytest.mark.parametrize("process", [Cosine(), Flow()], ids=repr)
def test_the_error_is_of_the_size_of_the_tolerance(process):
  with jax.enable_x64(True):
    z, evaluations = jnp.asarray(Z, jnp.float64), []
    for t, s in ((0.9, 0.1), (0.1, 0.9), (1.0, 0.05)):
      for tolerance in (1e-3, 1e-6):
        found = solve(process, each, z, jnp.float64(t), jnp.float64(s), tolerance)
        error = np.abs(found.z - flow(process, z, t, s)).max()
        assert bool(found.done.all()) and error < 30 * tolerance, (t, s)
        evaluations.append(int(found.evaluations.max()))
    assert all(fine > coarse for coarse, fine in zip(evaluations[::2], evaluations[1::2]))


def narrow(process):
  """The first half of a batch is all at one place, where the flow is straight; the rest is the plane's mixture."""

  def denoise(z, t, estimate=None, to=None):
    still = Denoised(jnp.zeros_like(z), z / jnp.reshape(process.sigma(t), (-1, 1)))
    half = (jnp.arange(len(z)) < len(z) // 2)[:, None]
    return jax.tree.map(lambda a, b: jnp.where(half, a, b), still, mixture(process)(z, t))

  return denoise


def test_each_example_has_its_own_steps():
  with jax.enable_x64(True):
    z, t, s = jax.random.normal(jax.random.key(0), (8, 2), jnp.float64), jnp.float64(0.98), jnp.float64(0.0)
    found = solve(Flow(), narrow, z, t, s, 1e-4)
    assert bool(found.done.all()) and int(found.evaluations[:4].max()) < int(found.evaluations[4:].min())
    alone = solve(Flow(), mixture, z[4:], t, s, 1e-4)
    np.testing.assert_allclose(found.z[4:], alone.z, rtol=1e-9)
    np.testing.assert_array_equal(found.evaluations[4:], alone.evaluations)


@pytest.mark.parametrize("process", [Cosine(), Flow(), EDM()], ids=repr)
def test_from_pure_noise_to_clean_data_in_float32(process):
  z = process.sigma(jnp.float32(1)) * Z
  found = solve(process, network, z, jnp.float32(1), jnp.float32(0), 1e-3)
  assert bool(found.done.all()) and bool(jnp.isfinite(found.z).all())


def test_in_place_nothing_happens():
  found = solve(Flow(), each, Z, jnp.float32(0.5), jnp.float32(0.5), 1e-3)
  np.testing.assert_allclose(found.z, Z, rtol=1e-6)


def test_a_network_that_is_not_finite_ends_and_says_so():
  broken = solve(
    Flow(), lambda process: lambda z, t: Denoised(z * jnp.nan, z), Z, jnp.float32(0.9), jnp.float32(0.1), 1e-3
  )
  assert not bool(broken.done.any())
