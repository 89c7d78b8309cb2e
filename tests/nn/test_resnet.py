from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.nn.resnet import ImageAttention, ResnetBlock
from tests.networks import quick, random_params

X = np.float32(np.random.default_rng(0).normal(size=(2, 4, 6, 8)))  # [B, H, W, C], not square


@pytest.mark.parametrize("features", [8, 12])
def test_a_block_is_its_layers(features):
  module = ResnetBlock(features, groups=4)
  params = random_params(module, X)
  assert ("shortcut" in params) == (features != 8)
  conv = lambda name, size, x: nn.Conv(features, (size, size), padding=size // 2).apply(
    {"params": params[name]}, x
  )
  norm = lambda name, x: nn.GroupNorm(4, epsilon=1e-6).apply({"params": params[name]}, x)

  @quick
  def expected(x):
    h = conv("conv1", 3, nn.silu(norm("norm1", x)))
    h = conv("conv2", 3, nn.silu(norm("norm2", h)))
    return h + (conv("shortcut", 1, x) if features != 8 else x)

  out = quick(module.apply)({"params": params}, X)
  assert out.shape == (2, 4, 6, features)
  np.testing.assert_allclose(out, expected(X), atol=1e-4)


def test_a_block_without_its_second_convolution_is_the_identity():
  params = random_params(ResnetBlock(8, groups=4), X)
  params["conv2"] = jax.tree.map(np.zeros_like, params["conv2"])
  np.testing.assert_array_equal(quick(ResnetBlock(8, groups=4).apply)({"params": params}, X), X)


@pytest.mark.parametrize("epsilon", [1e-6, 1.0])
def test_an_embedding_is_added_between_the_convolutions(epsilon):
  embedding = np.float32(np.random.default_rng(1).normal(size=(2, 5)))
  module = ResnetBlock(12, groups=4, epsilon=epsilon)
  params = random_params(module, X, embedding)
  conv = lambda name, size, x: nn.Conv(12, (size, size), padding=size // 2).apply({"params": params[name]}, x)
  norm = lambda name, x: nn.GroupNorm(4, epsilon=epsilon).apply({"params": params[name]}, x)

  @quick
  def expected(x):
    added = nn.silu(embedding) @ params["embedding"]["kernel"] + params["embedding"]["bias"]
    h = conv("conv1", 3, nn.silu(norm("norm1", x))) + added[:, None, None]
    return conv("conv2", 3, nn.silu(norm("norm2", h))) + conv("shortcut", 1, x)

  np.testing.assert_allclose(quick(module.apply)({"params": params}, X, embedding), expected(X), atol=1e-4)


def test_attention_does_not_know_places():
  module = ImageAttention(heads=2, groups=4)
  params = random_params(module, X)
  apply = quick(lambda x: module.apply({"params": params}, x))
  out, order = np.asarray(apply(X)), np.random.default_rng(1).permutation(24)
  assert out.shape == X.shape and np.abs(out - X).max() > 0.1
  shuffle = lambda x: x.reshape(2, 24, 8)[:, order].reshape(X.shape)
  np.testing.assert_allclose(apply(shuffle(X)), shuffle(out), atol=1e-5)


def test_attention_sees_every_place_of_its_own_image_alone():
  module = ImageAttention(groups=4)
  params = random_params(module, X)
  gradient = quick(jax.grad(lambda x: module.apply({"params": params}, x)[0, 0, 0, 0]))(X)
  assert (np.abs(gradient[0]).max(-1) > 0).all() and not gradient[1].any()


@pytest.mark.parametrize("module", [ResnetBlock(8, 4, "bfloat16"), ImageAttention(2, 4, "bfloat16")])
def test_bfloat16(module):
  half = jnp.asarray(X, jnp.bfloat16)
  params = random_params(module, half)
  out = quick(module.apply)({"params": params}, half)
  whole = quick(module.clone(dtype="float32").apply)({"params": params}, np.float32(half))
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(out), whole, atol=0.02 * np.abs(whole).max())
