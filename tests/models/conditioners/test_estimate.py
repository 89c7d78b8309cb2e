import jax.numpy as jnp
import numpy as np

from jldm.models.conditioners.estimate import beside

Z, ESTIMATE = np.random.default_rng(0).normal(size=(2, 1, 2, 2, 3))


def test_an_estimate_stands_behind_and_is_zero_where_there_is_none():
  both = beside(jnp.asarray(Z), ESTIMATE)
  np.testing.assert_allclose(both[..., :3], Z, rtol=1e-6)
  np.testing.assert_allclose(both[..., 3:], ESTIMATE, rtol=1e-6)
  np.testing.assert_array_equal(beside(jnp.asarray(Z), None), beside(jnp.asarray(Z), jnp.zeros_like(Z)))


def test_the_dtype_is_that_of_z():
  assert beside(jnp.asarray(Z, jnp.bfloat16), ESTIMATE).dtype == jnp.bfloat16
