from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.nn.resample import (
  Downsample,
  Upsample,
  depth_to_space,
  double,
  halve,
  shuffle,
  space_to_depth,
  unshuffle,
)
from tests.networks import quick, random_params

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(2, 4, 6, 3)))  # [B, H, W, C], not square


class Plain(nn.Module):
  """What `Upsample` computes, as it is usually written; parameters of the same names."""

  features: int

  @nn.compact
  def __call__(self, x):
    x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    return nn.Conv(self.features, (3, 3), padding=1, name="conv")(x)


def test_upsample_is_repeat_and_convolution_forward_and_backward():
  params = random_params(Plain(5), X)
  weights = np.float32(RNG.normal(size=(2, 8, 12, 5)))

  def both(module):
    f = lambda params, x: module.apply({"params": params}, x)
    return quick(lambda: (f(params, X), jax.grad(lambda *at: (weights * f(*at)).sum(), (0, 1))(params, X)))()

  ours, plain = both(Upsample(5)), both(Plain(5))
  assert ours[0].shape == (2, 8, 12, 5)
  assert jax.tree.structure(ours) == jax.tree.structure(plain)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max()), ours, plain)


def test_upsample_in_bfloat16():
  params = random_params(Upsample(5), X)
  half, whole = (quick(Upsample(5, dtype).apply)({"params": params}, X) for dtype in ("bfloat16", "float32"))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(half), whole, atol=0.1)


@pytest.mark.parametrize("padding", [(0, 1), (1, 1)])  # of the published codecs, of the published U-Nets
@pytest.mark.parametrize("height, width", [(4, 6), (2, 2)])
def test_downsample_is_every_second_place_of_a_convolution(height, width, padding):
  x, module = X[:, :height, :width], Downsample(5, padding=padding)
  params = random_params(module, x)
  kernel, bias = (np.float64(params["conv"][name]) for name in ("kernel", "bias"))
  padded = np.pad(x, ((0, 0), padding, padding, (0, 0)))
  expected = np.zeros((2, height // 2, width // 2, 5))
  for i, j in np.ndindex(expected.shape[1:3]):
    expected[:, i, j] = (
      np.einsum("byxc,yxcf->bf", padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], kernel) + bias
    )
  np.testing.assert_allclose(module.apply({"params": params}, x), expected, atol=1e-5)


@pytest.mark.parametrize("patch", [1, 2])
def test_space_to_depth_and_back(patch):
  deep = space_to_depth(X, patch)
  assert deep.shape == (2, 4 // patch, 6 // patch, 3 * patch**2)
  np.testing.assert_array_equal(depth_to_space(deep, patch), X)
  np.testing.assert_array_equal(space_to_depth(depth_to_space(deep, patch), patch), deep)


def test_a_patch_is_written_row_by_row_channels_last():
  deep = np.asarray(space_to_depth(X, 2))
  for i, j, a, b, c in np.ndindex(2, 3, 2, 2, 3):
    np.testing.assert_array_equal(deep[:, i, j, (2 * a + b) * 3 + c], X[:, 2 * i + a, 2 * j + b, c])


def test_unshuffling_writes_places_within_channels():
  deep = np.asarray(unshuffle(X, 2))
  for i, j, a, b, c in np.ndindex(2, 3, 2, 2, 3):
    np.testing.assert_array_equal(deep[:, i, j, 4 * c + 2 * a + b], X[:, 2 * i + a, 2 * j + b, c])
  np.testing.assert_array_equal(shuffle(deep, 2), X)


@pytest.mark.parametrize("module", [Upsample(5, use_bias=False), Downsample(5, use_bias=False)])
def test_without_a_bias(module):
  """As with one that is zero."""
  params = random_params(module, X)
  assert set(params["conv"]) == {"kernel"}
  zero = {"conv": params["conv"] | {"bias": np.zeros(5, np.float32)}}
  np.testing.assert_array_equal(
    module.apply({"params": params}, X), module.clone(use_bias=True).apply({"params": zero}, X)
  )


def test_the_codecs_padding_is_the_default():
  assert Downsample(5) == Downsample(5, padding=(0, 1))


def test_halving_and_doubling():
  """Means of 2x2 and nearest neighbours: one undoes the other, and sums are kept up to the area."""
  np.testing.assert_allclose(halve(double(X)), X, rtol=1e-6)
  np.testing.assert_allclose(4 * halve(X).sum((1, 2)), X.sum((1, 2)), rtol=1e-4)
  np.testing.assert_allclose(halve(X)[1, 1, 2], X[1, 2:4, 4:6].mean((0, 1)), rtol=1e-5)
  np.testing.assert_array_equal(double(X)[1, 2:4, 4:6], np.broadcast_to(X[1, 1, 2], (2, 2, 3)))
