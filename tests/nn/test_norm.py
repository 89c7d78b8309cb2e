from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.nn.norm import FrozenBatchNorm, GroupNorm, LayerNorm, RMSNorm, layer_norm, rms_norm
from tests.networks import quick, random_params

RNG = np.random.default_rng(0)


def exact_group_norm(x, groups, scale, bias, epsilon=1e-6):
  b, h, w, c = x.shape
  x = np.asarray(x, np.float64).reshape(b, h, w, groups, c // groups)
  x = (x - x.mean((1, 2, 4), keepdims=True)) / np.sqrt(x.var((1, 2, 4), keepdims=True) + epsilon)
  return x.reshape(b, h, w, c) * scale + bias


@pytest.mark.parametrize("mean, atol", [(0, 1e-5), (1000, 1e-3), (-1000, 1e-3)])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_group_norm_is_the_float64_one(mean, atol, groups):
  x = np.float32(RNG.normal(mean, 1, (2, 6, 5, 8)))
  params = random_params(GroupNorm(groups), x)
  expected = exact_group_norm(x, groups, **params)
  np.testing.assert_allclose(GroupNorm(groups).apply({"params": params}, x), expected, atol=atol)


@pytest.mark.parametrize("size", [1.0, 1e-3])  # the second is where epsilon counts
def test_group_norm_takes_flax_parameters(size):
  x = np.float32(size * RNG.normal(size=(2, 3, 4, 8)))
  ours, theirs = GroupNorm(4), nn.GroupNorm(4, epsilon=1e-6)
  params = random_params(theirs, x)
  ours, theirs = (quick(module.apply)({"params": params}, x) for module in (ours, theirs))
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_group_norm_in_bfloat16_has_float32_statistics():
  x = jnp.asarray(RNG.normal(100, 1, (1, 8, 8, 4)), jnp.bfloat16)
  params = random_params(GroupNorm(2), x)
  half = GroupNorm(2, dtype="bfloat16").apply({"params": params}, x)
  whole = GroupNorm(2).apply({"params": params}, x)
  assert half.dtype == jnp.bfloat16 and whole.dtype == jnp.float32
  np.testing.assert_array_equal(half, whole.astype(jnp.bfloat16))


def test_groups_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="groups=3 does not divide 8 channels"):
    random_params(GroupNorm(3), np.zeros((1, 2, 2, 8), np.float32))


@pytest.mark.parametrize("mean, atol", [(0, 1e-5), (1000, 1e-3)])
def test_layer_norm_is_the_float64_one(mean, atol):
  x = np.float32(RNG.normal(mean, 1, (2, 5, 16)))
  exact = np.asarray(x, np.float64)
  exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(layer_norm(x), exact, atol=atol)


def test_layer_norm_of_constants_is_zero_and_half_precision_comes_back_whole():
  assert not layer_norm(jnp.full((2, 3, 8), 7.0)).any()
  assert layer_norm(jnp.zeros((1, 1, 4), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize("size", [1.0, 1e3, 1e-3])
def test_rms_norm_is_the_float64_one(size):
  x = np.float32(size * RNG.normal(1, 1, (2, 5, 16)))
  exact = np.float64(x) / np.sqrt((np.float64(x) ** 2).mean(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(rms_norm(x), exact, atol=1e-5)
  assert rms_norm(jnp.zeros((1, 4), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
  "ours, theirs",
  [
    (LayerNorm(epsilon=0.1), nn.LayerNorm(epsilon=0.1)),
    (RMSNorm(epsilon=0.1), nn.RMSNorm(epsilon=0.1)),
    (LayerNorm(affine=False), nn.LayerNorm(use_scale=False, use_bias=False)),
  ],
)
def test_learned_norms_take_flax_parameters(ours, theirs):
  x = np.float32(RNG.normal(size=(2, 3, 8)))
  params = random_params(theirs, x) if jax.eval_shape(theirs.init, jax.random.key(0), x) else {}
  np.testing.assert_allclose(
    ours.apply({"params": params}, x), theirs.apply({"params": params}, x), atol=1e-5
  )
  assert ours.clone(dtype="bfloat16").apply({"params": params}, x).dtype == jnp.bfloat16


def test_only_an_affine_layer_norm_has_parameters():
  shapes = lambda module: jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 4), np.float32))
  assert set(shapes(LayerNorm())["params"]) == {"scale", "bias"} and not shapes(LayerNorm(affine=False))


def test_rms_norm_with_a_bias():
  x = np.float32(RNG.normal(2, 3, (2, 5, 4)))
  module = RMSNorm(1e-5, use_bias=True)
  params = random_params(module, x)
  exact = (
    x / np.sqrt(np.square(np.float64(x)).mean(-1, keepdims=True) + 1e-5) * params["scale"] + params["bias"]
  )
  np.testing.assert_allclose(module.apply({"params": params}, x), exact, atol=1e-5)


def test_a_frozen_batch_norm_is_its_formula_and_keeps_its_statistics():
  x = np.float32(RNG.normal(2, 3, (2, 3, 5, 4)))
  params = random_params(FrozenBatchNorm(), x)
  params["variance"] = np.square(params["variance"]) + 0.1
  exact = (np.float64(x) - params["mean"]) / np.sqrt(params["variance"] + 1e-5) * params["scale"] + params[
    "bias"
  ]
  apply = lambda params: FrozenBatchNorm().apply({"params": params}, x)
  np.testing.assert_allclose(apply(params), exact, atol=1e-5)
  slopes = jax.grad(lambda params: (x * apply(params)).sum())(params)
  assert {name: bool(np.any(slope)) for name, slope in slopes.items()} == {
    "scale": True,
    "bias": True,
    "mean": False,
    "variance": False,
  }
