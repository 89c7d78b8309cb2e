import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.models.autoencoders.kl import KLAutoencoder
from tests.networks import quick, random_params

SMALL = KLAutoencoder(channels=3, latent_channels=2, widths=(4, 8), resnets=1, groups=2)
IMAGES = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, 6, 10, 3)))  # [B, H, W, C], not square
KEYS = row_keys(jax.random.key(1), jnp.arange(2))


reconstruct = quick(lambda params, images: SMALL.apply({"params": params}, images, KEYS))
encode = lambda params, images: SMALL.apply({"params": params}, images, method="encode")


@pytest.fixture(scope="module")
def params():
  return random_params(SMALL, IMAGES, KEYS)


@pytest.fixture(scope="module")
def reconstructed(params):
  return jax.device_get(reconstruct(params, IMAGES))


@pytest.mark.parametrize(
  "channels, levels, patch, factor",
  [
    (1, 1, 1, 1),
    (3, 2, 1, 2),
    (1, 3, 1, 4),
    (4, 1, 4, 4),
    (3, 4, 1, 8),
    (2, 2, 4, 8),
    (3, 5, 1, 16),
    (1, 3, 4, 16),
  ],
)
def test_shapes(channels, levels, patch, factor):
  network = KLAutoencoder(
    channels=channels, latent_channels=5, widths=(4,) * levels, resnets=0, groups=2, patch=patch
  )
  assert network.factor == factor
  x = jnp.zeros((2, 3 * factor, 5 * factor, channels))
  shapes, _ = jax.eval_shape(network.init_with_output, jax.random.key(0), x, KEYS)
  images, posterior = shapes
  assert images.shape == x.shape and images.dtype == jnp.float32
  assert posterior.mean.shape == posterior.log_variance.shape == (2, 3, 5, 5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_and_both_ends_are_float32(dtype):
  network = SMALL.clone(dtype=dtype)
  out, params = jax.eval_shape(network.init_with_output, jax.random.key(0), IMAGES, KEYS)
  assert {leaf.dtype for leaf in jax.tree.leaves((out, params))} == {jnp.dtype("float32")}


@pytest.mark.parametrize("shape", [(7, 10, 3), (6, 9, 3), (6, 10, 1)])
def test_sizes_that_do_not_fit_are_refused(shape):
  came = "x".join(map(str, shape))
  with pytest.raises(ValueError, match=f"images of {came}; expected sides divisible by 2 and 3 channels"):
    random_params(SMALL, jnp.zeros((2, *shape)), KEYS)


def test_reconstruction_is_the_decoded_sample(params, reconstructed):
  @quick
  def by_hand(params):
    posterior = encode(params, IMAGES)
    return SMALL.apply({"params": params}, posterior.sample(KEYS), method="decode"), posterior

  for ours, expected in zip(jax.tree.leaves(reconstructed), jax.tree.leaves(by_hand(params)), strict=True):
    assert np.isfinite(ours).all() and ours.std() > 0.1
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_an_image_does_not_see_its_neighbours(params, reconstructed):
  other = IMAGES.copy()
  other[0] += 0.5
  images, posterior = jax.device_get(reconstruct(params, other))
  for new, old in ((images, reconstructed[0]), *zip(posterior, reconstructed[1])):
    np.testing.assert_array_equal(new[1], old[1])
    assert np.abs(new[0] - old[0]).max() > 1e-3


def test_log_variance_is_bounded(params):
  wild = jax.tree.map(lambda leaf: 1e3 * leaf, params)
  _, posterior = jax.device_get(reconstruct(wild, IMAGES))
  assert posterior.log_variance.min() == -30 and posterior.log_variance.max() == 20


def test_attention_lets_every_latent_see_every_pixel(params):
  gradient = jax.device_get(
    quick(jax.grad(lambda x, params: encode(params, x).mean[0, 0, 0, 0]))(IMAGES, params)
  )
  assert (np.abs(gradient[0]).max(-1) > 0).all() and not gradient[1].any()


def test_bottleneck_is_the_kl_an_image_value(params):
  posterior = quick(encode)(params, IMAGES)
  costs, metrics, extra = SMALL.apply({"params": params}, posterior, method="bottleneck")
  np.testing.assert_allclose(costs["kl"], posterior.kl() / (6 * 10 * 3), rtol=1e-6)
  assert set(costs) == {"kl"} and metrics == {} == extra
