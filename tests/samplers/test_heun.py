import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.diffusion.process import Flow
from jldm.samplers.ddim import DDIM
from jldm.samplers.heun import Heun
from tests.samplers.gaussian import PROCESSES, gaussian, measured_order, network, start, step

Z = jax.random.normal(jax.random.key(0), (8, 3))
KEYS = jax.random.split(jax.random.key(1), 8)

both = pytest.mark.parametrize("process", PROCESSES, ids=repr)


@both
def test_second_order_down_and_up(process):
  assert abs(measured_order(process, Heun()) - 2) < 0.15
  assert abs(measured_order(process, Heun(), low=4.0, high=-4.0) - 2) < 0.15


@both
@pytest.mark.parametrize("t", [1.0, 0.6, 0.01])
def test_the_last_step_is_euler_s(process, t):
  t, s = jnp.float32(t), jnp.float32(0)
  after = lambda sampler: step(process, network, sampler, start(process, sampler, Z, t), t, s, KEYS).z
  np.testing.assert_allclose(after(Heun()), after(DDIM()), rtol=1e-6)


@both
def test_it_is_the_trapezoid_in_the_clock_of_a_straight_line(process):
  """y = z / (alpha + sigma) over tau = sigma / (alpha + sigma), where dy/dtau = eps - x0 (Flow: z over t)."""
  scale = lambda t: process.alpha(t) + process.sigma(t)
  tau = lambda t: process.sigma(t) / scale(t)
  velocity = lambda y, t: (lambda d: d.eps - d.x0)(network(process)(scale(t) * y, t))
  for t, s in ((0.9, 0.7), (0.5, 0.1), (0.3, 0.6), (1.0, 0.4), (0.0, 0.5)):
    t, s = jnp.float32(t), jnp.float32(s)
    y, h = Z / scale(t), tau(s) - tau(t)
    first = velocity(y, t)
    trapezoid = y + h / 2 * (first + velocity(y + h * first, s))
    after = step(process, network, Heun(), start(process, Heun(), Z, t), t, s, KEYS).z
    np.testing.assert_allclose(after, scale(s) * trapezoid, rtol=1e-5, atol=5e-6)


def test_two_evaluations_a_step():
  calls = []
  denoise = lambda z, t, estimate=None, to=None: calls.append(1) or gaussian(Flow())(z, t)
  Heun().step(Flow(), denoise, start(Flow(), Heun(), Z, 0.5), jnp.float32(0.5), jnp.float32(0.25), KEYS)
  assert len(calls) == 2
