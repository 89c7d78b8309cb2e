import math

import jax.numpy as jnp
import numpy as np
import pytest

from jldm.nn.mlp import GEGLU, Mlp, SwiGLU
from tests.networks import quick, random_params

X = np.float32(np.random.default_rng(0).normal(size=(2, 5, 6)))


def tanh_gelu(h):
  return 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))  # 1606.08415, section 2


def exact_gelu(h):
  return 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))


FORMULAS = [  # module, width of its first layer, what it does between the two
  (Mlp(8), 8, tanh_gelu),
  (Mlp(8, activation="gelu"), 8, exact_gelu),
  (Mlp(8, activation="quick_gelu"), 8, lambda h: h / (1 + np.exp(-1.702 * h))),
  (Mlp(8, activation="relu"), 8, lambda h: np.maximum(h, 0)),
  (SwiGLU(8), 16, lambda h: h[..., :8] / (1 + np.exp(-h[..., :8])) * h[..., 8:]),
  (GEGLU(8), 16, lambda h: h[..., :8] * exact_gelu(h[..., 8:])),
]


@pytest.mark.parametrize("module, width, between", FORMULAS)
def test_it_is_its_formula(module, width, between):
  params = random_params(module, X)
  assert params["in"]["kernel"].shape == (6, width) and params["out"]["kernel"].shape == (8, 6)
  h = between(X @ np.float64(params["in"]["kernel"]) + params["in"]["bias"])
  expected = h @ params["out"]["kernel"] + params["out"]["bias"]
  np.testing.assert_allclose(module.apply({"params": params}, X), expected, atol=1e-5)


@pytest.mark.parametrize("module", [formula[0] for formula in FORMULAS])
def test_bfloat16(module):
  params = random_params(module, X)
  half, whole = (
    quick(module.clone(dtype=dtype).apply)({"params": params}, X) for dtype in ("bfloat16", "float32")
  )
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(half), whole, atol=0.05)
