"""What an extractor says of itself, and how it is found."""

import dataclasses

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics.extractors import extractor, weights
from jldm.metrics.extractors.extractor import Extractor, Found, find, opened, register
from jldm.metrics.extractors.fashion import BLAKE2B, FASHION

MEANS = Extractor(
  name="means", version="1", preprocessing="none", apply=lambda params, images: Found(images.mean((1, 2)))
)


@pytest.fixture
def registry(monkeypatch):
  monkeypatch.setattr(extractor, "EXTRACTORS", dict(extractor.EXTRACTORS))


def test_a_users_extractor_is_found(registry):
  assert register(MEANS) is MEANS and register(MEANS) is MEANS and find("means") is MEANS
  assert opened(find("means")).width((9, 8, 3)) == 3


def test_names_are_not_taken_twice(registry):
  with pytest.raises(UserError, match="another extractor named 'fashion' is registered"):
    register(dataclasses.replace(FASHION, version="2"))


@pytest.mark.parametrize(
  ("name", "told"),
  [("fasion", "did you mean 'fashion'? there are"), ("zzz", "extractor='zzz'; there are clip")],
)
def test_unknown_names_are_told(name, told):
  with pytest.raises(UserError) as error:
    find(name)
  assert told in str(error.value)


def test_the_source_tells_weights_version_and_preprocessing_apart():
  plain = opened(FASHION)
  assert plain.weights == BLAKE2B and BLAKE2B in plain.source
  others = [dataclasses.replace(FASHION, version="2"), dataclasses.replace(FASHION, preprocessing="another")]
  assert (
    len({plain.source, plain._replace(weights="other").source, *(opened(each).source for each in others)})
    == 4
  )


def test_only_official_weights_earn_the_name(monkeypatch):
  monkeypatch.setattr(weights, "OFFICIAL", {"a hash": "FID"})
  known, arrays = dataclasses.replace(MEANS, load=lambda arrays: arrays), {"a": np.ones(2, np.float32)}
  metadata = {"source": "a hash", "digest": weights.digest(arrays)}
  assert opened(known, arrays, metadata).distance == "FID"
  assert opened(known, {"a": 2 * arrays["a"]}, metadata).distance == "Fréchet distance"
  assert opened(known, arrays).distance == "Fréchet distance"
  assert (
    opened(known, arrays).weights == weights.digest(arrays) != opened(known, {"a": 2 * arrays["a"]}).weights
  )


@pytest.mark.parametrize("name", ["fashion", "pixels"])
def test_those_without_a_file_refuse_one(name):
  with pytest.raises(UserError, match="leave --weights out"):
    opened(find(name), {"a": np.ones(2)})


def test_those_without_weights_ask_for_a_file():
  with pytest.raises(UserError, match="'inception' comes without weights; pass a file that jldm convert"):
    opened(find("inception"))
