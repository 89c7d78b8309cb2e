"""Features do not depend on batches and devices, are kept under what they depend on, and are refused
where not finite.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.data.source import Arrays
from jldm.evaluation import features
from jldm.metrics.extractors.extractor import Extracted, Extractor, load_extractor

random = np.random.default_rng(0)
SOURCE = Arrays(
  {"image": random.integers(0, 256, (23, 8, 8, 1), np.uint8), "label": np.arange(23, dtype=np.int32) % 3}
)
ROWS = np.array([22, 0, 7, 3, 5, 1, 20, 2, 9, 11, 4])


def apply(params, images):
  flat = images.reshape(len(images), -1).astype(jnp.float32)
  return Extracted(flat @ params["w"], flat[:, :3])


PLAIN = load_extractor(
  Extractor(
    name="plain",
    version="1",
    preprocessing="none",
    apply=apply,
    batch_size=4,
    load=lambda arrays: {"w": np.linspace(0, 1, 64 * 5, dtype=np.float32).reshape(64, 5)},
  )
)


@pytest.mark.parametrize("batch_size", [3, 4, 64])
@pytest.mark.parametrize("devices", [1, 3, 8])
def test_batches_and_devices_change_nothing(batch_size, devices):
  loaded = PLAIN._replace(definition=dataclasses.replace(PLAIN.definition, batch_size=batch_size))
  actual = features.extract_features(loaded, SOURCE, ROWS, devices)
  flat = SOURCE.arrays["image"][ROWS].reshape(11, -1).astype(np.float32)
  np.testing.assert_allclose(actual.features, flat @ PLAIN.params["w"], rtol=1e-6)
  np.testing.assert_array_equal(actual.logits, flat[:, :3])
  np.testing.assert_array_equal(actual.labels, ROWS % 3)


def test_what_is_kept_is_of_these_pictures_and_this_extractor(tmp_path):
  first = features.cached_features(tmp_path, PLAIN, SOURCE, ROWS, 1)
  (path,) = tmp_path.iterdir()
  np.savez(path, features=np.zeros((11, 5), np.float32), logits=first.logits, labels=first.labels)
  assert not features.cached_features(tmp_path, PLAIN, SOURCE, ROWS, 1).features.any(), (
    "it is read, not made anew"
  )
  flipped = SOURCE.arrays["image"].copy()
  flipped[22, 0, 0] ^= 1
  changed = Arrays(SOURCE.arrays | {"image": flipped})
  others = [(PLAIN._replace(weights="x"), SOURCE, ROWS), (PLAIN, changed, ROWS), (PLAIN, SOURCE, ROWS[1:])]
  for loaded, source, rows in others:
    np.testing.assert_array_equal(
      features.cached_features(tmp_path, loaded, source, rows, 1).features,
      features.extract_features(loaded, source, rows, 1).features,
    )
  assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_file_is_made_anew(tmp_path):
  first = features.cached_features(tmp_path, PLAIN, SOURCE, ROWS, 1)
  (path,) = tmp_path.iterdir()
  path.write_bytes(path.read_bytes()[:200])
  np.testing.assert_array_equal(
    features.cached_features(tmp_path, PLAIN, SOURCE, ROWS, 1).features, first.features
  )


def test_features_that_are_not_finite_are_refused():
  broken = PLAIN._replace(params={"w": np.full((64, 5), np.nan, np.float32)})
  with pytest.raises(UserError, match="features of 11 of 11 pictures are not finite"):
    features.extract_features(broken, SOURCE, ROWS, 1)


def test_parts_are_joined():
  whole = features.features_of_images(PLAIN, SOURCE.arrays["image"], SOURCE.arrays["label"], 1)
  again = features.concatenate_features(whole.take(slice(9)), whole.take(np.arange(9, 23)))
  for name in ("features", "logits", "labels"):
    np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
