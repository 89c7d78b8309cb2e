"""Weights that a person supplies: what fits, and what may be called official."""

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics.extractors import weights
from tests.parity import inception as script

LIKE = {"fc": {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}}
ARRAYS = {"fc/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "fc/bias": np.ones(3, np.float32)}


def test_the_hash_is_of_values_names_and_shapes_alone():
  found = weights.digest(ARRAYS)
  assert found == weights.digest(dict(reversed(ARRAYS.items())))
  assert found == weights.digest({name: value.astype(np.float64) for name, value in ARRAYS.items()})
  assert found == weights.digest({"fc/kernel": np.asfortranarray(ARRAYS["fc/kernel"]), "fc/bias": ARRAYS["fc/bias"]})
  assert found == script.digest(ARRAYS), "the script that reads the published file has the same"
  turned = ARRAYS["fc/kernel"].reshape(3, 2)
  for changed in ({"fc/bias": np.float32([1, 1, 1.0000001])}, {"fc/kernel": turned}, {"fc/more": np.ones(1)}):
    assert found != weights.digest(ARRAYS | changed)


def test_official_is_what_comes_of_the_published_file_unchanged():
  (source,) = (sha for sha, name in weights.OFFICIAL.items() if name == "FID")
  metadata = {"source": source, "digest": weights.digest(ARRAYS)}
  assert weights.official(metadata, ARRAYS) == "FID"
  assert weights.official(metadata | {"source": "0" + source[1:]}, ARRAYS) is None
  assert weights.official({"source": source}, ARRAYS) is weights.official({}, ARRAYS) is None
  half = {name: (value / 3).astype(np.float16) for name, value in ARRAYS.items()}
  assert weights.official(metadata, half) is None


@pytest.mark.parametrize("change, told", [
  ({"fc/bias": None}, "'fc/bias' is missing of the weights of inception; make them by jldm convert --kind inception"),
  ({"fc/more": np.ones(3)}, "'fc/more' is no part"),
  ({"fc/bias": np.ones(4)}, r"fc/bias of the weights of inception is \[4\]; expected \[3\]"),
  ({"fc/bias": np.float32([1, np.nan, 1])}, "fc/bias of the weights of inception is not finite"),
])
def test_what_does_not_fit_is_told(change, told):
  arrays = {name: value for name, value in (ARRAYS | change).items() if value is not None}
  with pytest.raises(UserError, match=told):
    weights.unpack(arrays, LIKE, "inception")


def test_what_fits_is_a_tree():
  np.testing.assert_array_equal(weights.unpack(ARRAYS, LIKE, "inception")["fc"]["kernel"], ARRAYS["fc/kernel"])
