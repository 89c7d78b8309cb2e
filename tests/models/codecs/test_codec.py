import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.core.specs import Loaded
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.posterior import Gaussian
from jldm.models.autoencoders.quantize import Codebook
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import ImageCodec
from jldm.runs.latents import collapse_warning
from tests.networks import quick, random_params, randomised

RNG = np.random.default_rng(0)
NETWORK = KLAutoencoder(channels=1, latent_channels=2, widths=(4,), resnets=0, groups=2, patch=2)
IMAGES = RNG.integers(0, 256, (2, 4, 6, 1), np.uint8)
OFFSET, SCALE = np.array([1000.0, -3.0, 0.0]), np.array([1.0, 0.1, 5.0])  # a channel
MEAN = np.float32(OFFSET + SCALE * RNG.normal(size=(301, 2, 3, 3)))  # [N, h, w, C]
LOG_VARIANCE = np.float32(2 * np.log(SCALE) + RNG.normal(size=MEAN.shape))


@pytest.fixture(scope="module")
def codec():
  params = random_params(
    NETWORK, np.zeros(IMAGES.shape, np.float32), jax.random.split(jax.random.key(0), 2), scale=0.8
  )
  return {"params": params, "mean": jnp.array([0.5, -1.0]), "std": jnp.array([2.0, 0.5])}


def parts(*ends):
  starts = (0, *ends)
  return (Gaussian(MEAN[a:b], LOG_VARIANCE[a:b]) for a, b in zip(starts, (*ends, len(MEAN))))


@pytest.mark.parametrize("ends", [(), (100, 200), (1, 2, 300)])
def test_measured_is_numpy_over_all_data_at_once(ends):
  statistics = codecs.measure_statistics(parts(*ends))
  mean, log_variance = np.float64(MEAN).reshape(-1, 3), np.float64(LOG_VARIANCE).reshape(-1, 3)
  np.testing.assert_allclose(statistics.mean, mean.mean(0), rtol=1e-6)
  np.testing.assert_allclose(statistics.std, np.sqrt(mean.var(0) + np.exp(log_variance).mean(0)), rtol=1e-6)
  assert statistics.mean.dtype == statistics.std.dtype == jnp.float32


def test_standardised_draws_have_zero_mean_and_unit_std():
  posterior = Gaussian(jnp.asarray(MEAN), jnp.asarray(LOG_VARIANCE))
  statistics = codecs.measure_statistics(parts(100))
  codec = Loaded(ImageCodec(NETWORK), statistics._asdict())
  z = quick(codecs.sample_latents)(codec, posterior, row_keys(jax.random.key(0), jnp.arange(len(MEAN))))
  error = 1 / np.sqrt(z[..., 0].size)
  np.testing.assert_allclose(np.float64(z).mean((0, 1, 2)), 0, atol=5 * error)
  np.testing.assert_allclose(
    np.float64(z).std((0, 1, 2)), 1, atol=8 * error
  )  # heavier tails than a Gaussian's


def test_pixels():
  np.testing.assert_allclose(codecs.pixels(jnp.array([0, 51, 255], jnp.uint8)), [-1, -0.6, 1], atol=1e-7)
  np.testing.assert_array_equal(codecs.pixels(jnp.array([-0.3, 0.7])), jnp.array([-0.3, 0.7]))


def test_encode_takes_bytes_and_floats(codec):
  encode = quick(ImageCodec(NETWORK).encode)
  of_bytes, of_floats = (
    encode(codec, {"image": images}) for images in (IMAGES, np.float32(IMAGES / 127.5 - 1))
  )
  for a, b in zip(of_bytes, of_floats):
    assert a.shape == (2, 2, 3, 2)
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_decode_undoes_the_standardising_in_float32(codec):
  """Whatever the training dtype; and clipped to [-1, 1]."""
  z = jnp.asarray(RNG.normal(size=(2, 2, 3, 2)), jnp.float32)
  networks = (NETWORK, NETWORK.clone(dtype="bfloat16"))
  whole, half = (quick(codecs.decode_latents)(Loaded(ImageCodec(network), codec), z) for network in networks)
  raw = quick(lambda params, z: NETWORK.apply({"params": params}, z, method="decode"))
  raw = np.asarray(raw(codec["params"], z * codec["std"] + codec["mean"]))
  assert half.dtype == jnp.float32
  np.testing.assert_array_equal(half, whole)
  np.testing.assert_allclose(whole, np.clip(raw, -1, 1), atol=1e-5)
  assert (np.abs(raw) > 1).any() and (np.abs(raw) < 1).any()


def test_a_codebook_goes_with_the_codec():
  network = VQAutoencoder(
    quantizer=Codebook(size=8), channels=1, latent_channels=2, widths=(4,), resnets=0, groups=2, patch=2
  )
  keys = jax.random.split(jax.random.key(0), 2)
  shapes = jax.eval_shape(network.init, keys[0], jnp.zeros((2, 4, 6, 1)), keys)
  variables = randomised(shapes) | {
    "codebook": {"counts": np.full(8, 0.125, np.float32), "sums": np.float32(0.125 * RNG.normal(size=(8, 2)))}
  }
  codec = {
    "params": variables["params"],
    "extra": {"codebook": variables["codebook"]},
    "mean": jnp.array([0.5, -1.0]),
    "std": jnp.array([2.0, 0.5]),
  }
  images = np.float32(RNG.uniform(-1, 1, (2, 4, 6, 1)))
  posterior = quick(ImageCodec(network).encode)(codec, {"image": images})
  np.testing.assert_array_equal(posterior.log_variance, -30)
  z = jnp.asarray(RNG.normal(size=(2, 2, 3, 2)), jnp.float32)
  raw = quick(lambda variables, z: network.apply(variables, z, method="decode"))(
    variables, z * codec["std"] + codec["mean"]
  )
  decoded = quick(codecs.decode_latents)(Loaded(ImageCodec(network), codec), z)
  np.testing.assert_allclose(decoded, np.clip(raw, -1, 1), atol=1e-5)


def test_signal_is_the_share_of_the_variance_that_tells_examples_apart():
  """Three channels: all signal, one part of signal to three of noise, and a collapsed one."""
  signs = np.where(np.arange(8) % 2, 1.0, -1.0).reshape(-1, 1, 1, 1)
  mean = np.concatenate([signs, signs, 0 * signs], -1)
  log_variance = np.broadcast_to(np.array([-30.0, np.log(3.0), 0.0]), mean.shape)
  signal = codecs.measure_statistics([Gaussian(mean, log_variance)]).signal
  np.testing.assert_allclose(signal, [1, 0.25, 0], atol=1e-6)
  assert collapse_warning("autoencoder", signal[:2]) == ""
  assert collapse_warning("autoencoder", signal).startswith(
    "warning: 1 of 3 channels of the latents are noise"
  )
