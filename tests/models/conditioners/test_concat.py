import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.models.conditioners import masks
from jldm.models.conditioners.concat import Masked, Paired, joined
from jldm.models.conditioners.degradation import Grey, Missing

RNG = np.random.default_rng(0)
X0, SOURCE = np.float32(RNG.normal(size=(2, 400, 4, 6, 3)))
KEYS = row_keys(jax.random.key(0), jnp.arange(400))
CONDITIONS = [Masked(), Masked(shapes=("box",), dropout=0.5), Paired(dropout=0.25)]


@pytest.mark.parametrize("condition", CONDITIONS, ids=repr)
def test_what_is_drawn_depends_on_the_example_and_its_key_alone(condition):
  whole = condition.drawn(X0, SOURCE, KEYS)
  assert whole.shape == (400, 4, 6, condition.channels(3))
  np.testing.assert_array_equal(condition.drawn(X0[5:9], SOURCE[5:9], KEYS[5:9]), whole[5:9])


@pytest.mark.parametrize("condition", CONDITIONS, ids=repr)
def test_nothing_is_known_of_its_share(condition):
  nothing = ~np.asarray(condition.drawn(X0, SOURCE, KEYS)).any((1, 2, 3))
  assert abs(nothing.mean() - condition.dropout) < 5 * np.sqrt(0.25 / 400)
  assert np.asarray(Paired().drawn(X0, SOURCE, KEYS)).any((1, 2, 3)).all()


def test_hidden_places_are_zero_and_known_ones_are_the_latent():
  *latent, known = np.moveaxis(np.asarray(Masked(dropout=0.0).drawn(X0, None, KEYS)), -1, 0)
  assert set(np.unique(known)) == {0.0, 1.0} and 0.3 < known.mean() < 0.8
  np.testing.assert_array_equal(np.moveaxis(np.asarray(latent), 0, -1), known[..., None] * X0)


def test_a_pair_is_its_source():
  np.testing.assert_array_equal(Paired().drawn(X0, SOURCE, KEYS), SOURCE)


def test_examples_are_what_a_person_would_give():
  images, keys = jnp.asarray(RNG.uniform(-1, 1, (8, 16, 24, 3)), jnp.float32), KEYS[:8]
  shown, known = Masked().example(images, keys, 4)
  np.testing.assert_array_equal(masks.fine(masks.coarse(known, 4), 4), known)
  np.testing.assert_array_equal(shown, known * images)
  grey, none = Paired(degradation=Grey()).example(images, keys, 4)
  assert none is None
  np.testing.assert_array_equal(grey, Grey()(images))
  np.testing.assert_array_equal(Paired(degradation=Missing()).example(images, keys, 4)[0], Missing()(images, keys))


def test_it_stands_behind_z_in_its_dtype():
  z = jnp.asarray(X0[:2], jnp.bfloat16)
  both = joined(z, SOURCE[:2])
  assert both.dtype == jnp.bfloat16
  np.testing.assert_array_equal(both[..., :3], z)
  np.testing.assert_array_equal(both[..., 3:], jnp.asarray(SOURCE[:2], jnp.bfloat16))
  assert joined(z, None) is z


@pytest.mark.parametrize(("build", "told"), [
  (lambda: Masked(dropout=1.5), "dropout=1.5 of the condition; expected a share from 0 to 1"),
  (lambda: Paired(dropout=-0.1), "dropout=-0.1 of the condition"),
  (lambda: Masked(shapes=("ball",)), "shapes=('ball',); expected some of"),
])
def test_mistakes_are_refused(build, told):
  with pytest.raises(UserError) as error:
    build()
  assert told in str(error.value)
