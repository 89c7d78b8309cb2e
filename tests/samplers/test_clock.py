import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.diffusion.process import EDM, Cosine, Discrete, Flow
from jldm.samplers.clock import Line, Ratio, euler_step
from tests.samplers.gaussian import network

Z = jax.random.normal(jax.random.key(0), (4, 3))
TIMES = [0.05, 0.4, 0.9]

every = pytest.mark.parametrize("process", [Cosine(), Flow(), EDM(), Discrete()], ids=repr)
both = pytest.mark.parametrize("clock", [Line(), Ratio()], ids=repr)


@every
@both
def test_time_is_the_inverse_of_tau(process, clock):
  with jax.enable_x64(True):
    for t in map(jnp.float64, TIMES):
      np.testing.assert_allclose(clock.time(process, clock.tau(process, t)), t, rtol=1e-9)


@every
@both
def test_y_is_made_of_x0_and_eps_and_its_slope_is_their_derivative(process, clock):
  """z / scale = y(x0, eps, tau): a straight line in tau whose slope is `slope`, so that an Euler step
  is a straight line.
  """
  with jax.enable_x64(True):
    t, s = jnp.float64(0.6), jnp.float64(0.2)
    actual = network(process)(jnp.asarray(Z, jnp.float64), t)
    z_t = process.alpha(t) * actual.x0 + process.sigma(t) * actual.eps
    y = z_t / clock.scale(process, t) + (clock.tau(process, s) - clock.tau(process, t)) * clock.slope(actual)
    np.testing.assert_allclose(clock.scale(process, s) * y, euler_step(process, actual, s), rtol=1e-9)


def test_line_is_regular_at_both_ends():
  line = Line()
  for process in (Cosine(), Flow(), Discrete(rescale_betas_zero_snr=True)):
    for t in (0.0, 1.0):
      assert float(line.tau(process, jnp.float32(t))) == t and float(line.scale(process, jnp.float32(t))) == 1
    assert float(line.time(process, jnp.float32(1.0))) == 1
