"""What an extractor says of itself, and how it is found."""

import dataclasses

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics.extractors import extractor, weights
from jldm.metrics.extractors.extractor import (
  Extracted,
  Extractor,
  find_extractor,
  load_extractor,
  register_extractor,
)
from jldm.metrics.extractors.fashion import BLAKE2B, FASHION

MEANS = Extractor(
  name="means", version="1", preprocessing="none", apply=lambda params, images: Extracted(images.mean((1, 2)))
)


@pytest.fixture
def registry(monkeypatch):
  monkeypatch.setattr(extractor, "EXTRACTORS", dict(extractor.EXTRACTORS))


def test_a_users_extractor_is_found(registry):
  assert (
    register_extractor(MEANS) is MEANS
    and register_extractor(MEANS) is MEANS
    and find_extractor("means") is MEANS
  )
  assert load_extractor(find_extractor("means")).width((9, 8, 3)) == 3


def test_names_are_not_taken_twice(registry):
  with pytest.raises(UserError, match="another extractor named 'fashion' is registered"):
    register_extractor(dataclasses.replace(FASHION, version="2"))


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("fasion", "did you mean 'fashion'? expected one of clip"),
    ("zzz", "extractor='zzz'; expected one of clip"),
  ],
)
def test_unknown_names_are_reported(name, message):
  with pytest.raises(UserError) as error:
    find_extractor(name)
  assert message in str(error.value)


def test_the_source_tells_weights_version_and_preprocessing_apart():
  plain = load_extractor(FASHION)
  assert plain.weights == BLAKE2B and BLAKE2B in plain.source
  others = [dataclasses.replace(FASHION, version="2"), dataclasses.replace(FASHION, preprocessing="another")]
  assert (
    len(
      {
        plain.source,
        plain._replace(weights="other").source,
        *(load_extractor(each).source for each in others),
      }
    )
    == 4
  )


def test_only_official_weights_earn_the_name(monkeypatch):
  monkeypatch.setattr(weights, "OFFICIAL", {"a hash": "FID"})
  known, arrays = dataclasses.replace(MEANS, load=lambda arrays: arrays), {"a": np.ones(2, np.float32)}
  metadata = {"source": "a hash", "digest": weights.arrays_digest(arrays)}
  assert load_extractor(known, arrays, metadata).distance == "FID"
  assert load_extractor(known, {"a": 2 * arrays["a"]}, metadata).distance == "Fréchet distance"
  assert load_extractor(known, arrays).distance == "Fréchet distance"
  assert (
    load_extractor(known, arrays).weights
    == weights.arrays_digest(arrays)
    != load_extractor(known, {"a": 2 * arrays["a"]}).weights
  )


@pytest.mark.parametrize("name", ["fashion", "pixels"])
def test_those_without_a_file_refuse_one(name):
  with pytest.raises(UserError, match="leave --weights out"):
    load_extractor(find_extractor(name), {"a": np.ones(2)})


def test_those_without_weights_ask_for_a_file():
  with pytest.raises(UserError, match="'inception' comes without weights; pass a file that jldm convert"):
    load_extractor(find_extractor("inception"))
