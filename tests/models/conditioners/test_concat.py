import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.codec import Statistics, standardised
from jldm.models.conditioners import masks
from jldm.models.conditioners.concat import Masked, Paired
from jldm.models.conditioners.degradation import Grey, Missing

RNG = np.random.default_rng(0)
BATCH = {
  "source": np.float32(RNG.normal(size=(400, 4, 6, 3))), "image": RNG.integers(0, 256, (400, 8, 12, 3), np.uint8)
}
CODEC = Statistics(np.float32([1, 2, 3]), np.float32([0.5, 1, 2]))
KEYS = row_keys(jax.random.key(0), jnp.arange(400))
CONDITIONS = [Masked(), Masked(shapes=("box",), dropout=0.5), Paired(dropout=0.25)]


def encoded(images):
  """Pixels [B, 2 h, 2 w, C] -> [B, h, w, C], of every four the first."""
  return images[:, ::2, ::2]


def drawn(condition, some=slice(None), batch=BATCH):
  codec = CODEC if isinstance(condition, Paired) else encoded
  return np.asarray(condition.drawn(codec, {name: array[some] for name, array in batch.items()}, KEYS[some]))


@pytest.mark.parametrize("condition", CONDITIONS, ids=repr)
def test_what_is_drawn_depends_on_the_example_and_its_key_alone(condition):
  whole = drawn(condition)
  assert whole.shape == (400, 4, 6, condition.channels(3))
  np.testing.assert_allclose(drawn(condition, slice(5, 9)), whole[5:9], rtol=1e-5, atol=1e-6)  # a mean, in another order


@pytest.mark.parametrize("condition", CONDITIONS, ids=repr)
def test_nothing_is_known_of_its_share(condition):
  nothing = ~drawn(condition).any((1, 2, 3))
  assert abs(nothing.mean() - condition.dropout) < 5 * np.sqrt(0.25 / 400)
  assert drawn(Paired()).any((1, 2, 3)).all()


def test_a_mask_is_told_by_the_latent_of_what_it_leaves_and_by_its_share_of_each_place():
  """Of an encoder of single pixels a known place is its own; a hidden one is the mean of what is known."""
  told = drawn(Masked(dropout=0.0))
  images, known = encoded(codecs.pixels(BATCH["image"])), told[..., -1:]
  assert set(np.unique(known)) == {0, 0.25, 0.5, 0.75, 1} and 0.3 < known.mean() < 0.8
  np.testing.assert_array_equal(np.where(known == 1, told[..., :-1], 0), np.where(known == 1, images, 0))
  for one, mask in zip(told[..., :-1], known[..., 0]):
    if (mask == 0).any():
      assert np.ptp(one[mask == 0], 0).max() < 1e-5
  secret = np.where(known.repeat(2, 1).repeat(2, 2) > 0, BATCH["image"], 255 - BATCH["image"])
  np.testing.assert_array_equal(drawn(Masked(dropout=0.0), batch=BATCH | {"image": secret}), told)


def test_a_pair_is_its_source_standardised():
  np.testing.assert_array_equal(drawn(Paired()), standardised(CODEC, BATCH["source"]))


def test_examples_are_what_a_person_would_give():
  images, keys = jnp.asarray(RNG.uniform(-1, 1, (8, 16, 24, 3)), jnp.float32), KEYS[:8]
  shown, known = Masked().example(images, keys)
  np.testing.assert_array_equal(known, masks.draw(Masked().shapes, keys, (16, 24)))
  np.testing.assert_array_equal(shown, known * images)
  grey, none = Paired(degradation=Grey()).example(images, keys)
  assert none is None
  np.testing.assert_array_equal(grey, Grey()(images))
  np.testing.assert_array_equal(Paired(degradation=Missing()).example(images, keys)[0], Missing()(images, keys))


@pytest.mark.parametrize(("build", "told"), [
  (lambda: Masked(dropout=1.5), "dropout=1.5 of the condition; expected a share from 0 to 1"),
  (lambda: Paired(dropout=-0.1), "dropout=-0.1 of the condition"),
  (lambda: Masked(shapes=("ball",)), "shapes=('ball',); expected some of"),
])
def test_mistakes_are_refused(build, told):
  with pytest.raises(UserError) as error:
    build()
  assert told in str(error.value)
