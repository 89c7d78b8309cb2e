import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.nn.attention import SelfAttention
from jldm.nn.mlp import Mlp
from jldm.nn.transformer import ModulatedBlock, Modulation, modulated
from tests.networks import quick, random_params

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(2, 5, 8)))  # [B, L, C]
CONDITION = np.float32(RNG.normal(size=(2, 6)))
BLOCK = ModulatedBlock(heads=2, mlp_ratio=2.0)


def norm(x):
  x = np.float64(x) - np.float64(x).mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def parts(params, condition):
  h = condition / (1 + np.exp(-np.float64(condition)))
  return np.split((h @ params["kernel"] + params["bias"])[:, None], 6, -1)


def test_modulation_starts_at_zero_and_is_its_formula():
  module = Modulation(6, 8)
  assert not any(leaf.any() for leaf in jax.tree.leaves(module.init(jax.random.key(0), CONDITION)))
  params = random_params(module, CONDITION)
  out = module.apply({"params": params}, CONDITION)
  for ours, expected in zip(out, parts(params["dense"], CONDITION), strict=True):
    assert ours.shape == (2, 1, 8)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_modulated():
  shift, scale = (np.float32(RNG.normal(size=(2, 1, 8))) for _ in range(2))
  np.testing.assert_allclose(modulated(X, shift, scale), norm(X) * (1 + scale) + shift, atol=1e-5)
  assert modulated(X, *(jnp.asarray(x, jnp.bfloat16) for x in (shift, scale))).dtype == jnp.bfloat16


def test_a_block_starts_as_the_identity():
  out, _ = quick(BLOCK.init_with_output)(jax.random.key(0), X, CONDITION)
  np.testing.assert_array_equal(out, X)


def test_a_block_is_its_formula():
  params = random_params(BLOCK, X, CONDITION)
  shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts(params["modulation"]["dense"], CONDITION)
  attention = lambda x: SelfAttention(2).apply({"params": params["attention"]}, np.float32(x))
  mlp = lambda x: Mlp(16).apply({"params": params["mlp"]}, np.float32(x))
  x = X + gate_a * attention(norm(X) * (1 + scale_a) + shift_a)
  x = x + gate_m * mlp(norm(x) * (1 + scale_m) + shift_m)
  np.testing.assert_allclose(quick(BLOCK.apply)({"params": params}, X, CONDITION), x, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_stays(dtype):
  x, condition = jnp.asarray(X, dtype), jnp.asarray(CONDITION, dtype)
  block = BLOCK.clone(dtype=dtype)
  params = jax.eval_shape(block.init, jax.random.key(0), x, condition)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  assert jax.eval_shape(block.apply, params, x, condition).dtype == dtype
