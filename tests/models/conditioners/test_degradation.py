import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.models.conditioners.degradation import Blurred, Downsampled, Edges, Grey, Missing, Mixture, Noisy

IMAGES = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (6, 8, 12, 3)), jnp.float32)
KEYS = row_keys(jax.random.key(0), jnp.arange(6))
ALL = [Grey(), Edges(), Noisy(), Blurred(), Downsampled(), Missing(), Mixture()]
LINEAR = [Grey(), Blurred(), Downsampled(), Missing()]


@pytest.mark.parametrize("degrade", ALL, ids=repr)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_the_same_shape_and_range(degrade, channels):
  images = IMAGES[..., :channels]
  out = degrade(images, KEYS)
  assert out.shape == images.shape and out.dtype == images.dtype and float(jnp.abs(out).max()) <= 1
  np.testing.assert_array_equal(out, degrade(images, KEYS))
  if not (isinstance(degrade, Grey) and channels == 1):
    assert (jnp.abs(out - images).max((1, 2, 3)) > 0.01).all(), "every one of them is spoilt"


@pytest.mark.parametrize("degrade", ALL, ids=repr)
def test_a_row_depends_on_its_image_and_key_alone(degrade):
  whole = degrade(IMAGES, KEYS)
  np.testing.assert_allclose(degrade(IMAGES[3:5], KEYS[3:5]), whole[3:5], atol=1e-6)


@pytest.mark.parametrize("degrade", LINEAR, ids=repr)
def test_linear_ones_are_linear(degrade):
  other = IMAGES[::-1, ::-1]
  np.testing.assert_allclose(
    degrade(0.3 * IMAGES - 0.5 * other, KEYS),
    0.3 * degrade(IMAGES, KEYS) - 0.5 * degrade(other, KEYS),
    atol=1e-5,
  )


@pytest.mark.parametrize("degrade", [Grey(), Downsampled(), Missing()], ids=repr)
def test_twice_is_once(degrade):
  once = degrade(IMAGES, KEYS)
  np.testing.assert_allclose(degrade(once, KEYS), once, atol=1e-5)


@pytest.mark.parametrize("degrade", [Grey(), Blurred(), Downsampled()], ids=repr)
def test_a_flat_grey_picture_is_left(degrade):
  flat = jnp.full_like(IMAGES, 0.3)
  np.testing.assert_allclose(degrade(flat), flat, atol=1e-5)


def test_edges_are_dark_where_the_luminance_rises():
  assert (Edges()(jnp.full_like(IMAGES, 0.3)) == 1).all()
  step = jnp.zeros((1, 16, 16, 3)).at[:, :, 8:].set(1)
  lines = np.asarray(Edges(0.7, 3.0)(step))
  np.testing.assert_array_equal(lines[:, :, 7:9], -1)
  assert (lines[:, :, :4] > 0.99).all() and (lines[:, :, 12:] > 0.99).all()
  ramp = jnp.broadcast_to(0.1 * jnp.arange(8.0)[:, None, None], (1, 8, 8, 1))
  np.testing.assert_allclose(Edges(0.01, 3.0)(ramp), 1 - 2 * 0.3, rtol=1e-4)


def test_a_blurred_point_is_the_gaussian():
  point = jnp.zeros((1, 31, 31, 1)).at[0, 15, 15].set(1)
  out = np.asarray(Blurred(2.0)(point))[0, ..., 0]
  np.testing.assert_allclose(out.sum(), 1, rtol=1e-4)
  distance = np.arange(31) - 15
  np.testing.assert_allclose((out * distance[:, None] ** 2).sum(), 4, rtol=1e-2)


def test_noise_and_losses_have_their_size():
  images, keys = jnp.zeros((16, 32, 32, 3)), row_keys(jax.random.key(1), jnp.arange(16))
  assert abs(float(Noisy(0.2)(images, keys).std()) - 0.2) < 0.005
  missing = Missing(0.3)
  known = missing.known(images, keys)
  assert known.shape == (16, 32, 32, 1) and abs(float(known.mean()) - 0.7) < 0.015
  np.testing.assert_array_equal(missing(images + 0.5, keys), jnp.broadcast_to(0.5 * known, images.shape))


def test_a_mixture_is_one_of_its_parts_and_each_in_turn():
  images, keys = IMAGES[:1].repeat(200, 0), row_keys(jax.random.key(1), jnp.arange(200))
  parts = (Grey(), Downsampled(2), Downsampled(4))
  out = Mixture(parts)(images, keys)
  same = np.stack([jnp.abs(out - part(images, keys)).max((1, 2, 3)) < 1e-6 for part in parts])
  np.testing.assert_array_equal(same.sum(0), 1)
  assert (np.abs(same.mean(1) - 1 / 3) < 5 * np.sqrt(2 / 9 / 200)).all()


def test_gradients_pass():
  for degrade in LINEAR:
    slope = jax.grad(lambda x, degrade=degrade: degrade(x, KEYS).sum())(IMAGES)
    assert jnp.isfinite(slope).all() and jnp.abs(slope).max() > 0


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (lambda: Noisy(-1.0), "std=-1.0 of Noisy; expected a number from 0"),
    (lambda: Blurred(0.0), "sigma=0.0 of Blurred; expected a number above 0, in pixels"),
    (lambda: Downsampled(0), "factor=0 of Downsampled; expected a whole number from 1"),
    (lambda: Missing(1.5), "share=1.5 of Missing; expected a share from 0 to 1"),
    (lambda: Edges(strength=0.0), "strength=0.0 of Edges"),
    (lambda: Mixture(()), "degradations=() of Mixture; expected at least one"),
    (
      lambda: Downsampled(5)(IMAGES),
      "pictures of 8x12; expected sides divisible by Downsampled(factor=5).factor",
    ),
  ],
)
def test_mistakes_are_refused(build, message):
  with pytest.raises(UserError) as error:
    build()
  assert message in str(error.value)
