import jax.numpy as jnp
import numpy as np

from jldm.nn.mlp import Mlp
from tests.networks import quick, random_params

X = np.float32(np.random.default_rng(0).normal(size=(2, 5, 6)))


def test_it_is_its_formula():
  params = random_params(Mlp(8), X)
  assert params["in"]["kernel"].shape == (6, 8) and params["out"]["kernel"].shape == (8, 6)
  h = X @ np.float64(params["in"]["kernel"]) + params["in"]["bias"]
  h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))  # GELU by tanh, 1606.08415, section 2
  expected = h @ params["out"]["kernel"] + params["out"]["bias"]
  np.testing.assert_allclose(Mlp(8).apply({"params": params}, X), expected, atol=1e-5)


def test_bfloat16():
  params = random_params(Mlp(8), X)
  half, whole = (quick(Mlp(8, dtype).apply)({"params": params}, X) for dtype in ("bfloat16", "float32"))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(half), whole, atol=0.05)
