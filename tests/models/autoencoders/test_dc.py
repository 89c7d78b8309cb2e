import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.config.serialize import from_data, to_data
from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.models.autoencoders.dc import Convolutions, DCAutoencoder, Level, LinearAttention, linear_attention
from jldm.objectives.autoencoder import Reconstruction
from tests.networks import quick, random_params

LEVELS = (Level(4, 1), Level(8, 1, LinearAttention(4, scales=(3,))))
BATCH = (Level(4, 1, Convolutions("batch", "relu")), LEVELS[1])
SMALL = DCAutoencoder(latent_channels=4, encoder_levels=LEVELS, decoder_levels=BATCH)
FOLDED = (Level(4, 0), *LEVELS)
IMAGES = np.float32(np.random.default_rng(0).uniform(-1, 1, (2, 8, 12, 3)))  # [B, H, W, C], not square
ROWS = np.arange(2)
KEYS = row_keys(jax.random.key(1), jnp.arange(2))


@pytest.mark.parametrize(
  "network, factor",
  [
    (SMALL, 2),
    (SMALL.clone(dtype="bfloat16"), 2),
    (SMALL.clone(strided=False, nearest=False, out_shortcut=False, in_shortcut=False, latent_channels=3), 2),
    (SMALL.clone(encoder_levels=FOLDED, decoder_levels=FOLDED, strided=False, nearest=False), 4),
  ],
  ids=["strided", "bfloat16", "folding", "four pixels"],
)
def test_shapes(network, factor):
  (images, posterior), params = jax.eval_shape(network.init_with_output, jax.random.key(0), IMAGES, KEYS)
  assert network.factor == factor and images.shape == IMAGES.shape
  assert (
    posterior.mean.shape
    == posterior.log_variance.shape
    == (2, 8 // factor, 12 // factor, network.latent_channels)
  )
  assert {leaf.dtype for leaf in jax.tree.leaves((images, posterior, params))} == {jnp.dtype("float32")}


def test_the_default_is_that_of_sana():
  """32 pixels a latent; 312 million parameters."""
  network = DCAutoencoder()
  params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), KEYS[:1])["params"]
  assert network.factor == 32 and round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6) == 312


def test_sizes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match="images of 7x12x3; expected sides divisible by 2 and 3 channels"):
    random_params(SMALL, jnp.zeros((2, 7, 12, 3)), KEYS)
  with pytest.raises(UserError, match="heads 3 wide do not divide 8 channels"):
    random_params(SMALL.clone(encoder_levels=(Level(4, 1), Level(8, 1, LinearAttention(3)))), IMAGES, KEYS)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"encoder_levels": (Level(4, 1), Level(12, 1))}, "averages 16 channels to 12; expected a divisor of 16"),
    (
      {"encoder_levels": (Level(4, 1), Level(6, 1)), "strided": False},
      "become 6 channels; expected a multiple of 4",
    ),
    ({"decoder_levels": (Level(4, 1), Level(12, 1))}, "repeats 12 channels to 16; expected a multiple of 12"),
    ({"latent_channels": 3}, "averages 8 channels to 3"),
  ],
)
def test_widths_that_shortcuts_cannot_join_are_refused(changes, message):
  with pytest.raises(UserError, match=message):
    jax.eval_shape(SMALL.clone(in_shortcut=False, **changes).init, jax.random.key(0), IMAGES, KEYS)


def test_attention_is_the_sum_over_all_pairs():
  """Equation (1), first form, in float64: three heads of two, over places of an image that is not square."""
  rng = np.random.default_rng(0)
  qkv = rng.normal(size=(2, 3, 4, 18))
  q, k, v = np.moveaxis(qkv.reshape(2, 12, 3, 3, 2), 3, 0)
  pairs = np.einsum("bind,bjnd->bijn", np.maximum(q, 0), np.maximum(k, 0))
  expected = np.einsum("bijn,bjnd->bind", pairs / (pairs.sum(2, keepdims=True) + 1e-15), v).reshape(
    2, 3, 4, 6
  )
  np.testing.assert_allclose(
    quick(linear_attention, static_argnums=1)(np.float32(qkv), 2), expected, atol=1e-5
  )


def test_it_is_data():
  assert from_data(to_data(SMALL)) == SMALL


@pytest.mark.slow
def test_stage_one_trains_all_but_what_is_frozen():
  objective, batch = Reconstruction(network=SMALL), {"image": IMAGES, "row": ROWS}

  @quick
  def slopes(key):
    params, extra = objective.init(key, batch, {})
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    return jax.grad(lambda params: objective.loss(params, extra, None, {}, batch, key)[0].mean())(params)

  names = lambda tree: {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  still = {name for name, slope in names(slopes(jax.random.key(0))).items() if not np.any(slope)}
  assert still == {f"decoder/level0_block0/norm/{part}" for part in ("mean", "variance")}
