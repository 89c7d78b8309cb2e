"""Weights that a person supplies: what fits, and what may be called official."""

from flax import linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics.extractors import weights
from jldm.metrics.extractors.extractor import Extractor, load_extractor
from tests.parity import inception as script


class Network(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, name="fc")(x)


unpack = lambda arrays: weights.unpack_weights(arrays, Network(), jnp.zeros((1, 2)), "inception")
ARRAYS = {"fc/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "fc/bias": np.ones(3, np.float32)}


def test_the_hash_is_of_values_names_and_shapes_alone():
  actual = weights.arrays_digest(ARRAYS)
  assert actual == weights.arrays_digest(dict(reversed(ARRAYS.items())))
  assert actual == weights.arrays_digest({name: value.astype(np.float64) for name, value in ARRAYS.items()})
  assert actual == weights.arrays_digest(
    {"fc/kernel": np.asfortranarray(ARRAYS["fc/kernel"]), "fc/bias": ARRAYS["fc/bias"]}
  )
  assert actual == script.digest(ARRAYS), "the script that reads the published file has the same"
  turned = ARRAYS["fc/kernel"].reshape(3, 2)
  for changed in ({"fc/bias": np.float32([1, 1, 1.0000001])}, {"fc/kernel": turned}, {"fc/more": np.ones(1)}):
    assert actual != weights.arrays_digest(ARRAYS | changed)


def test_official_is_what_comes_of_the_published_file_unchanged():
  (source,) = (sha for sha, name in weights.OFFICIAL.items() if name == "FID")
  metadata = {"source": source, "digest": weights.arrays_digest(ARRAYS)}
  assert weights.official_name(metadata, ARRAYS) == "FID"
  assert weights.official_name(metadata | {"source": "0" + source[1:]}, ARRAYS) is None
  assert weights.official_name({"source": source}, ARRAYS) is weights.official_name({}, ARRAYS) is None
  half = {name: (value / 3).astype(np.float16) for name, value in ARRAYS.items()}
  assert weights.official_name(metadata, half) is None


@pytest.mark.parametrize(
  "change, message",
  [
    (
      {"fc/bias": None},
      "'fc/bias' is missing from the weights of 'inception'; make them by jldm convert --kind inception",
    ),
    ({"fc/more": np.ones(3)}, "'fc/more' is no part of"),
    ({"fc/bias": np.ones(4)}, r"fc/bias of the weights of 'inception' is \[4\]; expected \[3\]"),
    ({"fc/bias": np.float32([1, np.nan, 1])}, "fc/bias of the weights of 'inception' is not finite"),
  ],
)
def test_what_does_not_fit_is_reported(change, message):
  arrays = {name: value for name, value in (ARRAYS | change).items() if value is not None}
  with pytest.raises(UserError, match=message):
    unpack(arrays)


def test_no_weights_ship():
  with pytest.raises(
    UserError, match="'inception' comes without weights; pass a file that jldm convert --kind inception made"
  ):
    unpack(None)


def test_only_official_weights_name_the_distance():
  extractor = Extractor(
    name="x", version="1", preprocessing="", apply=lambda params, images: None, load=lambda arrays: arrays
  )
  metadata = {"source": next(iter(weights.OFFICIAL)), "digest": weights.arrays_digest(ARRAYS)}
  assert load_extractor(extractor, ARRAYS, metadata).distance == "FID"
  assert load_extractor(extractor, ARRAYS | {"fc/bias": np.zeros(3)}, metadata).distance == "Fréchet distance"
  assert (
    load_extractor(extractor, ARRAYS).distance == load_extractor(extractor).distance == "Fréchet distance"
  )


def test_what_fits_is_a_tree():
  np.testing.assert_array_equal(unpack(ARRAYS)["fc"]["kernel"], ARRAYS["fc/kernel"])
