import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.core.specs import spec
from jldm.models.codecs.codec import pixels, standardised
from jldm.models.conditioners import masks
from jldm.models.conditioners.conditioner import cached_conditions, draw_conditions
from jldm.models.conditioners.degradation import Grey, Missing
from jldm.models.conditioners.pictures import Masked, Paired

RNG = np.random.default_rng(0)
BATCH = {"image": RNG.integers(0, 256, (400, 8, 12, 3), np.uint8)}
DATA = spec(image=(np.uint8, (8, 12, 3)))
CODEC = {"mean": np.float32([1, 2, 3]), "std": np.float32([0.5, 1, 2])}
KEYS = row_keys(jax.random.key(0), jnp.arange(400))
CONDITIONERS = [
  Masked(),
  Masked(shapes=("box",), dropout=0.5),
  Paired(dropout=0.25),
  Paired(degradation=Missing(), dropout=0.25),
]


def encoded(fields):
  """Pixels [B, 2 h, 2 w, C] of the field "image" -> [B, h, w, C], of every four the first."""
  return fields["image"][:, ::2, ::2]


def conditions(conditioner, some=slice(None), batch=BATCH, encode=encoded):
  """What the network is given in training, [B, h, w, c]; a cached conditioner goes through what is
  kept of an example.
  """
  batch, keys = {name: array[some] for name, array in batch.items()}, KEYS[some]
  kept = cached_conditions([conditioner], {}, batch, encode, keys)
  return np.asarray(draw_conditions([conditioner], {}, kept, encode, [keys])[conditioner.name]["concat"])


@pytest.mark.parametrize("conditioner", CONDITIONERS, ids=repr)
def test_what_is_drawn_depends_on_the_example_and_its_key_alone(conditioner):
  whole = conditions(conditioner)
  assert whole.shape == (400, 4, 6, 3 + isinstance(conditioner, Masked))
  some = conditions(conditioner, slice(5, 9))
  np.testing.assert_allclose(some, whole[5:9], rtol=1e-5, atol=1e-6)  # a mean, in another order


@pytest.mark.parametrize("conditioner", CONDITIONERS, ids=repr)
def test_nothing_is_known_of_its_share(conditioner):
  nothing = ~conditions(conditioner).any((1, 2, 3))
  assert abs(nothing.mean() - conditioner.dropout) < 5 * np.sqrt(0.25 / 400)
  assert conditions(Paired()).any((1, 2, 3)).all()


def test_a_masked_picture_is_the_latent_of_what_it_leaves_and_its_share_of_each_place():
  """Of an encoder of single pixels a known place is its own; a hidden one is the mean of what is known."""
  given = conditions(Masked(dropout=0.0))
  images, known = encoded({"image": pixels(BATCH["image"])}), given[..., -1:]
  assert set(np.unique(known)) == {0, 0.25, 0.5, 0.75, 1} and 0.3 < known.mean() < 0.8
  np.testing.assert_array_equal(np.where(known == 1, given[..., :-1], 0), np.where(known == 1, images, 0))
  for one, mask in zip(given[..., :-1], known[..., 0]):
    if (mask == 0).any():
      assert np.ptp(one[mask == 0], 0).max() < 1e-5
  secret = np.where(known.repeat(2, 1).repeat(2, 2) > 0, BATCH["image"], 255 - BATCH["image"])
  np.testing.assert_array_equal(conditions(Masked(dropout=0.0), batch={"image": secret}), given)


def test_the_published_channels_are_the_mask_and_then_the_picture_grey_where_it_is_hidden():
  conditioner = Masked(as_diffusers=True)
  images, known = np.asarray(pixels(BATCH["image"][:2])), np.ones((2, 8, 12, 1), np.float32)
  known[:, 2:4, 4:8] = 0
  given = conditioner.embed({}, conditioner.read_request((images, known), DATA), encoded)["concat"]
  np.testing.assert_array_equal(given[..., :1], 1 - known[:, ::2, ::2])
  np.testing.assert_array_equal(given[..., 1:], encoded({"image": images * known}))
  every = conditioner.read_request(conditioner.default_request(DATA), DATA)
  assert not every["known"].any() and not every["image"].any(), "all is painted"
  assert Masked().default_request(DATA) is None


def test_a_pair_is_its_source_standardised():
  source = RNG.normal(size=(400, 4, 6, 3)).astype(np.float32)
  encode = lambda fields: standardised(CODEC, source)
  np.testing.assert_array_equal(conditions(Paired(), encode=encode), standardised(CODEC, source))


def test_what_is_kept_of_an_example():
  """The finished latents of a pair, and of what is masked anew the picture itself."""
  kept = cached_conditions([Masked(), Paired(degradation=Grey())], {}, BATCH, encoded, KEYS)
  assert kept.keys() == {"image", "paired__concat"}
  assert kept["image"] is BATCH["image"]
  np.testing.assert_array_equal(kept["paired__concat"], encoded({"image": Grey()(pixels(BATCH["image"]))}))


def test_what_is_read_is_what_is_drawn():
  images, keys = jnp.asarray(RNG.uniform(-1, 1, (8, 8, 12, 3)), jnp.float32), KEYS[:8]
  drawn = Masked().draw_inputs({"image": images}, keys)
  np.testing.assert_array_equal(drawn["known"], masks.draw_masks(Masked().shapes, keys, (8, 12)))
  np.testing.assert_array_equal(drawn["image"], images)
  for degradation in (Grey(), Missing()):
    source = Paired(degradation=degradation).draw_inputs({"image": images}, keys)
    np.testing.assert_array_equal(source["image"], degradation(images, keys))
    assert_same(Paired().read_request(source["image"], DATA), source)
  assert_same(Masked().read_request((images, drawn["known"]), DATA), drawn)


def assert_same(these, those):
  assert these.keys() == those.keys() and all(these[key].dtype == those[key].dtype for key in those)
  jax.tree.map(np.testing.assert_array_equal, these, dict(those))


def test_bytes_are_read_as_the_floats_that_they_are():
  images, known = BATCH["image"][:2], np.ones((8, 12)) * (np.arange(12) < 5)
  floats = np.asarray(pixels(images))
  assert_same(Paired().read_request(images, DATA), Paired().read_request(floats, DATA))
  assert_same(
    Masked().read_request((images, known), DATA),
    Masked().read_request((floats, [known[..., None]] * 2), DATA),
  )


@pytest.mark.parametrize(
  "conditioner, given", [(Masked(), (BATCH["image"], np.ones((8, 12)))), (Paired(), BATCH["image"])]
)
def test_null_is_zeros_and_no_picture_is(conditioner, given):
  condition = conditioner.embed({}, conditioner.read_request(given, DATA), encoded)
  null = conditioner.null({}, condition)
  assert null["concat"].shape == condition["concat"].shape and not null["concat"].any()
  assert condition["concat"].any((1, 2, 3)).all()


ones = functools.partial(np.ones, dtype=np.float32)


@pytest.mark.parametrize(
  ("conditioner", "given", "message"),
  [
    (Paired(), ones((8, 12, 3)), "paired: images of shape [8, 12, 3]; expected [n, 8, 12, 3]"),
    (Paired(name="grey"), ones((2, 8, 8, 3)), "grey: images of shape [2, 8, 8, 3]; expected [n, 8, 12, 3]"),
    (Paired(), np.ones((2, 8, 12, 3), int), "paired: images of int64; expected uint8, or floats in [-1, 1]"),
    (Masked(), ones((2, 8, 12, 3)), "masked: expected (images [n, H, W, C], known [n, H, W, 1]"),
    (
      Masked(),
      (ones((2, 8, 12, 1)), ones((8, 12))),
      "masked: images of shape [2, 8, 12, 1]; expected [n, 8, 12, 3]",
    ),
    (
      Masked(),
      (ones((2, 8, 12, 3)), ones((2, 8, 12))),
      "known of shape [2, 8, 12] and images of [2, 8, 12, 3]; expected [2, 8,",
    ),
    (Masked(), (ones((2, 8, 12, 3)), ones((4, 6))), "known of shape [1, 4, 6, 1]"),
    (Masked(), (ones((2, 8, 12, 3)), ones((3, 8, 12, 1))), "known of shape [3, 8, 12, 1]"),
  ],
)
def test_what_is_not_legal_is_refused(conditioner, given, message):
  with pytest.raises(UserError) as error:
    conditioner.read_request(given, DATA)
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (lambda: Masked(dropout=1.5), "dropout=1.5 of conditioner 'masked'; expected a share from 0 to 1"),
    (lambda: Paired(dropout=-0.1), "dropout=-0.1 of conditioner 'paired'"),
    (lambda: Masked(shapes=("ball",)), "shapes=('ball',); expected some of"),
  ],
)
def test_mistakes_are_refused(build, message):
  with pytest.raises(UserError) as error:
    build()
  assert message in str(error.value)
