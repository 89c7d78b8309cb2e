import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.keys import row_keys
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.quantize import FSQ, Codebook
from jldm.models.autoencoders.vq import VQAutoencoder
from tests.networks import quick, random_params

SMALL = dict(channels=3, latent_channels=2, widths=(4, 8), resnets=0, groups=2)
VQ = VQAutoencoder(quantizer=Codebook(size=16), **SMALL)
SCALAR = VQAutoencoder(quantizer=FSQ((4, 5)), **SMALL)
IMAGES = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, 6, 10, 3)))  # [B, H, W, C], not square
KEYS = row_keys(jax.random.key(1), jnp.arange(2))


@pytest.fixture(scope="module")
def variables():
  """With a codebook of latents of the images."""
  params = random_params(VQ, IMAGES, KEYS)
  zeros = {"counts": np.zeros(16, np.float32), "sums": np.zeros((16, 2), np.float32)}
  refresh = quick(lambda variables: VQ.apply(variables, IMAGES, jax.random.key(2), method="refresh"))
  return {"params": params} | jax.device_get(refresh({"params": params, "codebook": zeros}))


apply = lambda variables, method, *args: VQ.apply(variables, *args, method=method)


@pytest.mark.parametrize(
  "network, size, collections",
  [
    (VQ, 16, {"params", "codebook"}),
    (SCALAR, 20, {"params"}),
    (VQ.clone(dtype="bfloat16"), 16, {"params", "codebook"}),
  ],
  ids=["codebook", "fsq", "bfloat16"],
)
def test_shapes(network, size, collections):
  (images, posterior), variables = jax.eval_shape(network.init_with_output, jax.random.key(0), IMAGES, KEYS)
  assert images.shape == IMAGES.shape and posterior.mean.shape == posterior.log_variance.shape == (2, 3, 5, 2)
  assert network.factor == 2 and network.quantizer.size == size and set(variables) == collections
  assert {leaf.dtype for leaf in jax.tree.leaves((images, posterior, variables))} == {jnp.dtype("float32")}
  if "codebook" in variables:
    assert jax.tree.map(lambda x: x.shape, variables["codebook"]) == {"counts": (16,), "sums": (16, 2)}


def test_encoder_and_decoder_are_those_of_kl():
  ours = jax.eval_shape(VQ.init, jax.random.key(0), IMAGES, KEYS)["params"]
  theirs = jax.eval_shape(KLAutoencoder(**SMALL).init, jax.random.key(0), IMAGES, KEYS)["params"]
  shapes = lambda params: jax.tree.map(lambda x: x.shape, params)
  assert shapes(ours["decoder"]) == shapes(theirs["decoder"])
  assert set(ours["encoder"]) == set(theirs["encoder"])


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="images of 7x10x3; expected sides divisible by 2 and 3 channels"):
    random_params(VQ, jnp.zeros((2, 7, 10, 3)), KEYS)


def test_latents_are_those_before_quantisation(variables):
  """`encode` needs no codebook, and gives a point; `decode` quantises: twice is once."""
  posterior = quick(lambda params: VQ.apply({"params": params}, IMAGES, method="encode"))(variables["params"])
  assert (np.asarray(posterior.log_variance) == -30).all() and np.asarray(posterior.mean).std() > 0.1
  quantized, codes = jax.device_get(
    quick(lambda v, z: apply(v, "quantize", z))(variables, posterior.mean + 0.05)
  )
  assert codes.shape == (2, 3, 5) and len(set(codes.reshape(-1))) > 3
  decode = quick(lambda v, z: apply(v, "decode", z))
  of_latents, of_quantized = decode(variables, posterior.mean + 0.05), decode(variables, quantized)
  np.testing.assert_allclose(of_latents, of_quantized, rtol=1e-4, atol=1e-4)
  assert np.asarray(of_latents).std() > 0.05


def test_reconstruction_is_the_decoded_latents(variables):
  @quick
  def by_hand(variables):
    posterior = apply(variables, "encode", IMAGES)
    return apply(variables, "decode", posterior.mean), posterior

  images, posterior = quick(lambda variables: VQ.apply(variables, IMAGES, KEYS))(variables)
  expected, same = by_hand(variables)
  np.testing.assert_allclose(images, expected, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(posterior.mean, same.mean, rtol=1e-5, atol=1e-6)


def test_bottleneck_is_the_commitment_and_the_next_codebook(variables):
  @quick
  def quantized_by(variables):
    posterior = apply(variables, "encode", IMAGES)
    posterior = posterior._replace(mean=posterior.mean + 0.1)
    return (
      posterior.mean,
      apply(variables, "bottleneck", posterior),
      apply(variables, "quantize", posterior.mean),
    )

  z, (costs, metrics, extra), (quantized, codes) = jax.device_get(quantized_by(variables))
  np.testing.assert_allclose(costs["commitment"], np.square(z - quantized).mean((1, 2, 3)), rtol=1e-4)
  assert costs["commitment"].min() > 0
  expected = VQ.quantizer.update(variables["codebook"], z, codes)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), extra, {"codebook": expected}
  )
  np.testing.assert_allclose(
    [metrics["usage"], metrics["perplexity"]], [1, 16], rtol=1e-5
  )  # before the batch


def test_fsq_passes_for_free():
  params = random_params(SCALAR, IMAGES, KEYS)
  posterior = quick(lambda params: SCALAR.apply({"params": params}, IMAGES, method="encode"))(params)
  bottleneck = SCALAR.apply({"params": params}, posterior, method="bottleneck")
  assert (
    bottleneck == ({}, {}, {}) and SCALAR.apply({"params": params}, IMAGES, KEYS[0], method="refresh") == {}
  )
  with pytest.raises(ValueError, match="latent_channels=2 with FSQ"):
    random_params(SCALAR.clone(quantizer=FSQ((3, 3, 3))), IMAGES, KEYS)
