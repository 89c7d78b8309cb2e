import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.models.autoencoders.tiny import TinyAutoencoder
from jldm.objectives.autoencoder import Reconstruction
from tests.networks import quick, random_params

SMALL = TinyAutoencoder(latent_channels=2, width=4, encoder_blocks=(1, 1), decoder_blocks=(0, 1))
IMAGES = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, 6, 10, 3)))  # [B, H, W, C], not square
ROWS = np.arange(2)
KEYS = row_keys(jax.random.key(1), jnp.arange(2))


@pytest.mark.parametrize("network", [SMALL, SMALL.clone(dtype="bfloat16"), SMALL.clone(activation="mish")])
def test_shapes(network):
  (images, posterior), params = jax.eval_shape(network.init_with_output, jax.random.key(0), IMAGES, KEYS)
  assert images.shape == IMAGES.shape and posterior.mean.shape == posterior.log_variance.shape == (2, 3, 5, 2)
  assert {leaf.dtype for leaf in jax.tree.leaves((images, posterior, params))} == {jnp.dtype("float32")}


def test_the_default_is_that_of_stable_diffusion():
  """Eight pixels a latent; 1.22 million parameters of each of encoder and decoder, as published."""
  network = TinyAutoencoder()
  params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), KEYS[:1])["params"]
  sizes = {part: sum(leaf.size for leaf in jax.tree.leaves(params[part])) for part in params}
  assert network.factor == 8 and sizes == {"encoder": 1_222_532, "decoder": 1_222_531}


@pytest.mark.parametrize(
  "options, message",
  [
    ({"activation": "tanh"}, "activation='tanh'; expected one of relu, silu, gelu, mish"),
    ({"decoder_blocks": (1,)}, "blocks of 2 and 1 levels; expected as many of both"),
  ],
)
def test_what_it_cannot_be(options, message):
  with pytest.raises(UserError, match=message):
    random_params(SMALL.clone(**options), IMAGES, KEYS)


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="images of 7x10x3; expected sides divisible by 2 and 3 channels"):
    random_params(SMALL, jnp.zeros((2, 7, 10, 3)), KEYS)


def test_latents_are_clamped_before_they_are_decoded():
  """By 3 tanh(z / 3): latents far outside are one picture, and small ones are not that."""
  params = random_params(SMALL, IMAGES, KEYS)
  z = np.sign(np.random.default_rng(0).normal(size=(1, 3, 5, 2)))
  decode = quick(lambda z: SMALL.apply({"params": params}, z, method="decode"))
  far, further, near = (np.asarray(decode(np.float32(scale * z))) for scale in (1e3, 1e6, 1))
  np.testing.assert_array_equal(far, further)
  assert np.abs(far - near).max() > 0.01


def test_stage_one_trains_all_of_it():
  objective, batch = Reconstruction(network=SMALL), {"image": IMAGES, "row": ROWS}

  @quick
  def slopes(key):
    params, extra = objective.init(key, batch, {})
    return jax.grad(lambda params: objective.loss(params, extra, None, {}, batch, key)[0].mean())(params)

  assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(slopes(jax.random.key(0)))) > 0
