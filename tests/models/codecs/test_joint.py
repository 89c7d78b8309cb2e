"""Codecs as objects: what each reads, returns and refuses; pixels as they are, tiles, and several codecs as
one.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.core.specs import Loaded, spec
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.posterior import Gaussian, Point, posterior_moments, posterior_of
from jldm.models.codecs.codec import decode_latents, encode_mean, init_shapes, sample_latents
from jldm.models.codecs.images import Identity, ImageCodec, variables
from jldm.models.codecs.joint import Joint, joined
from jldm.models.codecs.tiled import Tiled
from jldm.models.codecs.tiling import Blended, Exact
from tests.joint import CODEC, DATA, LETTERS, Letters, examples
from tests.networks import quick, randomised

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
NETWORK = KLAutoencoder(channels=1, latent_channels=2, widths=(4,), resnets=0, groups=2, patch=2)
IMAGES = ImageCodec(NETWORK)
BATCH = examples(np.arange(6))
ROWS = row_keys(KEY, np.arange(6))


def test_every_byte_comes_back_from_pixels():
  codec = Identity(mean=-0.3, std=0.7)
  loaded = Loaded(codec, codec.init(KEY))
  images = np.arange(256, dtype=np.uint8).reshape(2, 8, 16, 1)
  z = encode_mean(loaded, {"image": images})
  np.testing.assert_allclose(z, (images / 127.5 - 1 + 0.3) / 0.7, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(quick(lambda z: codec.finish(decode_latents(loaded, z)))(z), images)
  np.testing.assert_array_equal(sample_latents(loaded, codec.encode({}, {"image": images}), ROWS[:2]), z)
  np.testing.assert_array_equal(codec.latent_mask(images), images)
  assert codec.latent_spec(DATA).shape == (2, 4, 1)


def test_what_is_out_of_range_is_clipped():
  finished = Identity().finish(
    Identity().decode({}, jnp.array([-3.0, -1.0, 0.0, 1.0, 2.0])[None, None, :, None])
  )
  assert finished.ravel().tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("codec, size", [(IMAGES, (1, 2, 2)), (Identity(), (2, 4, 1))])
def test_the_shapes_of_latents_are_those_that_are_encoded(codec, size):
  posterior = jax.eval_shape(
    codec.encode, init_shapes(codec), {"image": jax.ShapeDtypeStruct((3, 2, 4, 1), jnp.uint8)}
  )
  assert posterior.mean.shape == (3, *size) == (3, *codec.latent_spec(DATA).shape)
  assert posterior.mean.dtype == codec.latent_spec(DATA).dtype == jnp.float32
  assert hash(codec) == hash(codec.__class__(**vars(codec))), "static under jit"


def test_a_place_of_latents_is_known_if_all_its_pixels_are():
  known = np.ones((1, 4, 4, 1), np.float32)
  known[0, 0, 3] = 0
  np.testing.assert_array_equal(IMAGES.latent_mask(known)[0, ..., 0], [[1, 0], [1, 1]])


@pytest.mark.parametrize(
  "codec, data, message",
  [
    (IMAGES, spec(image=(np.uint8, (2, 4, 3))), "data has 3 channels and the autoencoder 1; make them equal"),
    (
      IMAGES,
      spec(image=(np.uint8, (3, 4, 1))),
      "size 3x4; expected sides divisible by the autoencoder's factor 2",
    ),
    (
      IMAGES,
      spec(text=(np.uint8, (5,))),
      r"reads images \[H, W, C\] from 'image', and the data has text \[5\]",
    ),
    (
      Identity(std=(1.0, 2.0)),
      DATA,
      r"Identity\(std=\(1.0, 2.0\)\) and data of 1 channels; expected one number, or one per",
    ),
  ],
)
def test_data_that_do_not_fit(codec, data, message):
  with pytest.raises(UserError, match=message):
    codec.latent_spec(data)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: Identity(std=0.0), "std=0.0.; expected numbers above 0"),
    (lambda: Tiled(Identity(), Exact(2)), "tiles of Identity, which has no autoencoder; leave the tiles out"),
    (lambda: Joint((("image", IMAGES),)), r"Joint has parts \['image'\]; expected at least two"),
    (
      lambda: Joint((("a", IMAGES), ("a", IMAGES))),
      r"\['a', 'a'\]; expected at least two, with different identifiers",
    ),
    (lambda: Joint((("a__b", IMAGES), ("c", IMAGES))), "without __"),
  ],
)
def test_codecs_that_cannot_be(make, message):
  with pytest.raises(UserError, match=message):
    make()


@pytest.mark.slow
def test_a_tiled_codec_is_the_codec_in_tiles():
  params = randomised(init_shapes(IMAGES)) | {"mean": np.float32([0.5, -1]), "std": np.float32([2, 0.5])}
  z, images = np.float32(RNG.normal(size=(1, 5, 6, 2))), np.float32(RNG.uniform(-1, 1, (1, 10, 12, 1)))
  exact, blended = Tiled(IMAGES, Exact(3)), Tiled(IMAGES, Blended(3, 1))
  for codec in (exact, blended):
    assert codec.latent_spec(DATA) == IMAGES.latent_spec(DATA) and codec.factor == IMAGES.factor == 2
    raw = quick(codec.tiles.decode, static_argnums=0)(NETWORK, variables(params), z)
    np.testing.assert_allclose(quick(codec.decode)(params, z), np.clip(raw, -1, 1), atol=1e-5)
  np.testing.assert_allclose(quick(exact.decode)(params, z), quick(IMAGES.decode)(params, z), atol=1e-4)
  whole, in_tiles, halves = (
    quick(codec.encode)(params, {"image": images}).mean for codec in (IMAGES, exact, blended)
  )
  np.testing.assert_array_equal(in_tiles, whole)
  assert halves.shape == whole.shape and np.abs(halves - whole).max() > 1e-6


def test_a_joint_is_its_codecs_side_by_side():
  codec = Joint((("picture", IMAGES), ("text", Letters())))
  picture = randomised(init_shapes(IMAGES)) | {"mean": np.float32([0.5, -1]), "std": np.float32([2, 0.5])}
  params = joined({"picture": picture, "text": Letters().init(KEY)})
  assert jax.tree.structure(params) == jax.tree.structure(codec.init(KEY))
  assert {name: each.shape for name, each in codec.latent_spec(DATA).items()} == {
    "picture": (1, 2, 2),
    "text": (5, LETTERS),
  }
  loaded = Loaded(codec, params)
  z = quick(encode_mean)(loaded, BATCH)
  np.testing.assert_allclose(
    z["picture"], quick(encode_mean)(Loaded(IMAGES, picture), BATCH), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(z["text"], 2 * np.eye(LETTERS)[BATCH["caption"]] - 2 / LETTERS, atol=1e-6)
  decoded = quick(decode_latents)(loaded, z)
  expected = quick(decode_latents)(Loaded(IMAGES, picture), z["picture"])
  np.testing.assert_allclose(decoded["picture"], expected, atol=1e-5)
  finished = codec.finish(decoded)
  assert finished["picture"].dtype == np.uint8
  np.testing.assert_array_equal(finished["text"], BATCH["caption"])
  alone = decode_latents(loaded, {"text": z["text"]})
  assert alone.keys() == {"text"}, "a part may be decoded alone"


def test_moments_have_names_and_come_back():
  gaussian, point = Gaussian(jnp.ones((2, 3)), jnp.zeros((2, 3))), Point(jnp.full((2, 5, 1), 2.0))
  joint = {"image": gaussian, "text": point}
  assert posterior_moments(gaussian).keys() == {"mean", "log_variance"} and posterior_moments(
    point
  ).keys() == {"mean"}
  assert posterior_moments(joint).keys() == {"image__mean", "image__log_variance", "text__mean"}
  others = {"row": np.arange(2), "label": np.zeros(2)}
  for one in (gaussian, point, joint):
    back = posterior_of(posterior_moments(one) | others)
    assert jax.tree.structure(back) == jax.tree.structure(one)
    jax.tree.map(np.testing.assert_array_equal, back, one)


def test_parts_draw_noise_of_their_own():
  noise = Gaussian(jnp.zeros((6, 4)), jnp.zeros((6, 4)))
  codec = Loaded(CODEC, {"mean": {"a": 0.0, "b": 0.0}, "std": {"a": 1.0, "b": 1.0}})
  z = sample_latents(codec, {"a": noise, "b": noise}, ROWS)
  assert (z["a"] != z["b"]).all()
  few = sample_latents(codec, jax.tree.map(lambda x: x[2:4], {"a": noise, "b": noise}), ROWS[2:4])
  jax.tree.map(lambda whole, part: np.testing.assert_array_equal(whole[2:4], part), z, few)
