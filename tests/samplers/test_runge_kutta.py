import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.diffusion.process import Flow
from jldm.samplers.ddim import DDIM
from jldm.samplers.runge_kutta import RK4
from tests.samplers.gaussian import PROCESSES, gaussian, network, start, step

Z = jax.random.normal(jax.random.key(0), (8, 3))
KEYS = jax.random.split(jax.random.key(1), 8)


def test_it_is_the_classical_method_on_the_flow_process():
  velocity = lambda z, t: (lambda d: d.eps - d.x0)(network(Flow())(z, t))
  for t, s in ((0.9, 0.7), (0.5, 0.1), (0.3, 0.6), (1.0, 0.4)):
    t, h = jnp.float32(t), s - t
    k1 = velocity(Z, t)
    k2 = velocity(Z + h / 2 * k1, t + h / 2)
    k3 = velocity(Z + h / 2 * k2, t + h / 2)
    k4 = velocity(Z + h * k3, t + h)
    after = step(Flow(), network, RK4(), start(Flow(), RK4(), Z, t), t, jnp.float32(s), KEYS).z
    np.testing.assert_allclose(after, Z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_last_step_is_euler_s(process):
  for t in (1.0, 0.3):
    after = [
      step(process, network, sampler, start(process, sampler, Z, t), jnp.float32(t), jnp.float32(0), KEYS).z
      for sampler in (RK4(), DDIM())
    ]
    np.testing.assert_array_equal(*after)


def test_four_evaluations_a_step():
  calls = []
  denoise = lambda z, t, estimate=None, to=None: calls.append(1) or gaussian(Flow())(z, t)
  RK4().step(Flow(), denoise, start(Flow(), RK4(), Z, 0.5), jnp.float32(0.5), jnp.float32(0.25), KEYS)
  assert len(calls) == 4
