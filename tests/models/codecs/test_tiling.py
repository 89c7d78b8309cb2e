import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics.image import psnr
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.quantize import FSQ
from jldm.models.autoencoders.tiny import TinyAutoencoder
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.models.codecs import tiling
from jldm.models.codecs.tiling import Blended, Exact
from jldm.nn.resample import double, halve
from tests.networks import quick, random_params

RNG = np.random.default_rng(0)
Z = np.float32(RNG.normal(size=(2, 5, 7, 3)))  # [B, h, w, c], not square
SMALL = dict(latent_channels=3, groups=2)
KL = KLAutoencoder(widths=(4, 6), resnets=0, **SMALL)
ATTENDING = VQAutoencoder(
  quantizer=FSQ((3, 4, 5)), widths=(4, 4), resnets=0, patch=2, attention=(1,), **SMALL
)
params_of = lambda network: random_params(
  network, jnp.zeros((1, 2 * network.factor, network.factor, 3)), jax.random.split(jax.random.key(0), 1)
)
decode = quick(
  lambda network, tiles, params, z: (
    tiles.decode(network, {"params": params}, z)
    if tiles
    else network.apply({"params": params}, z, method="decode")
  ),
  static_argnums=(0, 1),
)


@pytest.mark.parametrize(
  "network, tiles",
  [
    (KL, Exact(5)),
    (KL, Exact(3, thrifty=True)),
    (ATTENDING, Exact(4)),
    pytest.param(KL.clone(resnets=1), Exact(1), marks=pytest.mark.slow),
    pytest.param(KL.clone(widths=(4, 4, 6)), Exact(2, thrifty=True), marks=pytest.mark.slow),
    pytest.param(KL.clone(widths=(4,), pointwise=False), Exact(2), marks=pytest.mark.slow),
    pytest.param(ATTENDING.clone(attention=(0,), middle_attention=False), Exact(3), marks=pytest.mark.slow),
  ],
  ids=["blocks", "levels", "attending", "one latent", "three levels", "one level", "attending last"],
)
def test_exact_tiles_are_the_whole(network, tiles):
  """Sizes that divide the latents and that do not, larger than one side of them, and smaller than what
  a block sees.
  """
  params = params_of(network)
  whole, tiled = (np.asarray(decode(network, some, params, Z)) for some in (None, tiles))
  assert whole.std() > 0.05 and not np.array_equal(tiled, whole)
  assert np.abs(tiled - whole).max() <= 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize("tiles", [Exact(7), Exact(100), Blended(7, 2)], ids=str)
def test_a_tile_as_large_as_the_image_is_the_image(tiles):
  params = params_of(KL)
  np.testing.assert_array_equal(decode(KL, tiles, params, Z), decode(KL, None, params, Z))


def test_a_large_mean_survives():
  """Activations around 1000: moments of tiles are merged, sums of squares are not."""
  params = params_of(KL)
  params["decoder"]["level1_resnet0"]["conv2"]["bias"] += 1000
  whole, tiled = (np.asarray(decode(KL, some, params, Z)) for some in (None, Exact(5)))
  assert np.abs(tiled - whole).max() <= 1e-4 * np.abs(whole).max()


def test_queries_in_pieces_are_all_queries(monkeypatch):
  monkeypatch.setattr(tiling, "QUERIES", 4)
  q, k, v = (np.float32(RNG.normal(size=(2, 10, 2, 3))) for _ in range(3))
  np.testing.assert_allclose(
    quick(tiling.attend_in_pieces)(q, k, v), quick(tiling.attend)(q, k, v), atol=1e-6
  )


@pytest.mark.parametrize(
  "side, tile, overlap, scale", [(7, 3, 1, 2), (8, 4, 0, 1), (9, 4, 3, 8), (5, 5, 2, 2)]
)
def test_weights_of_tiles_add_up_to_one(side, tile, overlap, scale):
  begins, weights = tiling.blending_weights(side, tile, overlap, scale)
  total = np.zeros(scale * side)
  for begin, each in zip(begins, weights):
    total[scale * begin : scale * (begin + tile)] += each
  np.testing.assert_allclose(total, 1, rtol=1e-6)
  assert (weights > 0).all() and begins[0] == 0 and begins[-1] == side - tile


class Local:
  """An autoencoder whose every place is by itself: doubling, and means of four."""

  factor, channels = 2, 3

  def apply(self, variables, x, method):
    return double(x) if method == "decode" else {"mean": halve(x)}


@pytest.mark.parametrize("tiles", [Blended(3, 1), Blended(2, 0), Blended(6, 5)], ids=str)
def test_blended_tiles_of_what_is_local_are_the_whole(tiles):
  images = Local().apply({}, Z, "decode")
  np.testing.assert_allclose(tiles.decode(Local(), {}, Z), images, atol=1e-6)
  np.testing.assert_allclose(tiles.encode(Local(), {}, images)["mean"], Z, atol=1e-6)


def test_blended_tiles_are_near_the_whole_and_have_less_of_a_seam():
  """A tiny autoencoder sees its surroundings: an overlap of tiles takes most of the error of those
  beside each other.
  """
  network = TinyAutoencoder(latent_channels=3, width=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
  params, z = params_of(network), np.float32(RNG.normal(size=(1, 12, 12, 3)))
  whole, blended, cut = (
    np.asarray(decode(network, some, params, z)) for some in (None, Blended(8, 4), Blended(6, 0))
  )
  assert psnr(whole, blended)[0] > psnr(whole, cut)[0] + 3
  seam = lambda images: np.abs(
    images[:, :, 12] - images[:, :, 11] - (whole[:, :, 12] - whole[:, :, 11])
  ).mean()
  assert seam(blended) < seam(cut) / 2


def test_encoding_in_blended_tiles():
  network, images = KL, np.float32(RNG.uniform(-1, 1, (1, 16, 12, 3)))
  params = params_of(network)
  encode = quick(lambda tiles: tiles.encode(network, {"params": params}, images), static_argnums=0)
  whole, tiled = encode(Blended(8, 2)), encode(Blended(6, 2))
  assert tiled.mean.shape == tiled.log_variance.shape == (1, 8, 6, 3)
  assert 1e-4 < np.abs(tiled.mean - whole.mean).mean() < 0.5 * whole.mean.std()
  with pytest.raises(ValueError, match="images of 15x12x3; expected sides divisible by 2"):
    Blended(2, 0).encode(network, {"params": params}, images[:, 1:])


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: Exact(0), "tile=0; expected at least 1 latent"),
    (lambda: Blended(0), "tile=0; expected at least 1 latent"),
    (lambda: Blended(4, 4), "overlap=4 of tiles of 4 latents; expected 0 to 3"),
    (
      lambda: Exact(2).decode(TinyAutoencoder(), {}, Z),
      "exact tiles of TinyAutoencoder; expected a KL or VQ",
    ),
  ],
)
def test_what_cannot_be_is_refused(make, message):
  with pytest.raises(UserError, match=message):
    make()


@pytest.mark.slow
def test_exact_tiles_take_less_memory():
  """Of the compiler's own account, which attention, fused, does not enter."""
  network = KLAutoencoder(widths=(8, 16), resnets=1, groups=4, middle_attention=False)
  params = jax.eval_shape(lambda: params_of(network))
  z = jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32)
  needed = lambda tiles: (
    decode.lower(network, tiles, params, z).compile().memory_analysis().temp_size_in_bytes
  )
  whole, exact, thrifty = needed(None), needed(Exact(8)), needed(Exact(8, thrifty=True))
  assert exact < 0.7 * whole and thrifty < 0.5 * whole
