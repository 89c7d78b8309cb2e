import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.keys import normal_like
from jldm.diffusion.process import Discrete, Flow
from jldm.samplers.consistency import Consistency, with_boundary
from jldm.samplers.ddim import DDIM
from jldm.samplers.grid import uniform
from jldm.samplers.pairs import adjacent_pairs
from tests.samplers.gaussian import network, point, start, step, walk

Z = jax.random.normal(jax.random.key(0), (8, 3))
KEYS = jax.random.split(jax.random.key(1), 8)


def test_it_jumps_to_the_data_and_noises_anew():
  process, t, s = Flow(), jnp.float32(0.8), jnp.float32(0.3)
  x0, eps, _ = network(process)(Z, t)
  for gamma in (1.0, 0.6):
    after = step(process, network, Consistency(gamma), start(process, Consistency(), Z, t), t, s, KEYS).z
    noise = (1 - gamma**2) ** 0.5 * eps + gamma * normal_like(KEYS, Z)
    np.testing.assert_allclose(after, process.alpha(s) * x0 + process.sigma(s) * noise, rtol=1e-5, atol=1e-5)


def test_without_noise_it_is_ddim():
  pairs = adjacent_pairs(uniform(4))
  np.testing.assert_allclose(
    walk(Flow(), network, Consistency(0.0), Z, pairs, KEYS),
    walk(Flow(), network, DDIM(), Z, pairs, KEYS),
    atol=1e-6,
  )


def test_a_network_that_knows_the_data_needs_one_step():
  reached = walk(Flow(), point, Consistency(), Z, adjacent_pairs(uniform(1)), KEYS)
  np.testing.assert_allclose(reached, 0.7, rtol=1e-6)


def test_the_boundary_is_z_at_the_clean_end_and_x0_away_from_it():
  process = Discrete()
  denoise = network(process)
  bounded = with_boundary(process, denoise)
  clean = jnp.float32(1 / process.num_train_timesteps)  # level 0
  np.testing.assert_allclose(bounded(Z, clean).x0, Z, rtol=1e-5)
  far = jnp.float32(0.9)
  np.testing.assert_allclose(bounded(Z, far).x0, denoise(Z, far).x0, rtol=1e-5, atol=1e-6)
