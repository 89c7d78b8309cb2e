import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.diffusion.process import Cosine, Flow
from jldm.samplers.exponential import (
  count_usable,
  exponential_moments,
  extend_history,
  lagrange_weights,
  log_snr_steps,
  start_history,
  weights_of_order,
)

KAPPAS = [-3.0, -0.999, -0.1, -1e-4, 1e-6, 1e-3, 0.05, 0.5, 0.9999, 1.0001, 2.0, 12.0, 50.0]


def quadrature(kappa, j, points=200_001):
  theta = np.linspace(0, 1, points)
  return np.trapezoid(kappa * np.exp(-kappa * (1 - theta)) * theta**j, theta)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_moments_are_the_integrals(kappa):
  with jax.enable_x64(True):
    np.testing.assert_allclose(
      exponential_moments(jnp.float64(kappa), 3),
      [quadrature(kappa, j) for j in range(4)],
      rtol=1e-6,
      atol=1e-12,
    )
    exact = np.array(exponential_moments(jnp.float64(kappa), 3))
  np.testing.assert_allclose(exponential_moments(jnp.float32(kappa), 3), exact, rtol=2e-5)


@pytest.mark.parametrize("r", [[-1.0], [-0.5, -2.0], [1.0, -0.7, -1.3]])
def test_interpolation_is_exact_for_polynomials(r):
  m = [0.6, 0.4, 0.3]
  weights = lagrange_weights(r, m)
  for power in range(1, len(r) + 1):
    np.testing.assert_allclose(sum(w * node**power for w, node in zip(weights, r)), m[power - 1], rtol=1e-12)


def test_a_step_uses_what_is_of_its_path_finite_and_apart():
  h, inf = jnp.float32(0.3), jnp.inf
  r = jnp.array([-1.0, -2.0, -3.0])
  assert [int(count_usable(h, r, jnp.int32(count))) for count in (0, 1, 2, 3)] == [0, 1, 2, 3]
  assert int(count_usable(h, jnp.array([-1.0, inf, -3.0]), 3)) == 1, (
    "nothing behind the first that is not finite"
  )
  assert int(count_usable(h, jnp.array([-1.0, -1.0, -3.0]), 3)) == 1, "the same place twice"
  assert int(count_usable(h, jnp.array([0.0, -1.0, -3.0]), 3)) == 0, "the place where the step begins"
  assert int(count_usable(jnp.float32(inf), jnp.array([0.0, 0.0, 0.0]), 3)) == 0, "a step to the clean end"
  assert int(count_usable(h, r[:0], 3)) == 0


def test_history_moves_on():
  z, pairs = jnp.ones((2, 3)), jnp.array([[1.0, 0.5], [0.5, 0.2], [0.2, 0.0]])
  state = start_history(z, pairs, 3)
  assert state.past[0].shape == z.shape and state.times.shape == (2,) and int(state.left) == 3
  for i, t in enumerate((1.0, 0.5, 0.2)):
    state = extend_history(state, z, z * i, jnp.float32(t))
  assert (int(state.count), int(state.left)) == (2, 0)
  np.testing.assert_allclose(state.times, [0.2, 0.5])
  np.testing.assert_array_equal(jnp.stack(state.estimates())[:, 0, 0], [2, 1])


@pytest.mark.parametrize("process", [Cosine(), Flow()], ids=repr)
def test_nodes_are_places_in_log_snr(process):
  times = process.time(2 * jnp.array([-0.4, -1.0]))
  h, r = log_snr_steps(process, times, process.time(jnp.float32(0.0)), process.time(jnp.float32(1.0)))
  np.testing.assert_allclose(h, 0.5, rtol=1e-5)
  np.testing.assert_allclose(r, [-0.8, -2.0], rtol=1e-5)


def test_weights_of_the_order_that_is_asked_for():
  table = [[], [jnp.nan], [1.0, 2.0]]
  np.testing.assert_array_equal(weights_of_order(table, jnp.int32(1), 2), [0, 0])
  np.testing.assert_array_equal(weights_of_order(table, jnp.int32(3), 2), [1, 2])
  assert weights_of_order([[]], jnp.int32(1), 0).shape == (0,)
