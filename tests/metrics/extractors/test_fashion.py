"""The shipped classifier: its file, its hash, what it takes, and that it knows clothes where they are at
hand.
"""

from pathlib import Path

import jax
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.trees import count
from jldm.data.prepare import read_idx
from jldm.metrics.extractors import fashion

CLOTHES = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist


@pytest.fixture(scope="module")
def images():
  return np.random.default_rng(0).integers(0, 256, (7, 28, 28, 1), np.uint8)


def test_the_weights_are_small_and_whole():
  assert fashion.WEIGHTS.stat().st_size < 1_000_000
  shapes = jax.eval_shape(fashion.Classifier().init, jax.random.key(0), np.zeros((1, 28, 28, 1), np.uint8))[
    "params"
  ]
  assert jax.tree.map(lambda leaf: leaf.shape, fashion.shipped_params()) == jax.tree.map(
    lambda leaf: leaf.shape, shapes
  )
  assert count(fashion.shipped_params()) < 500_000
  assert all(
    np.isfinite(leaf).all() and leaf.dtype == np.float32 for leaf in jax.tree.leaves(fashion.shipped_params())
  )


def test_other_weights_are_refused(tmp_path):
  other = tmp_path / "fashion.npz"
  flipped = bytearray(fashion.WEIGHTS.read_bytes())
  flipped[len(flipped) // 2] ^= 1
  other.write_bytes(flipped)
  with pytest.raises(UserError, match="expected " + fashion.BLAKE2B):
    fashion.load_classifier(other)
  with pytest.raises(UserError, match="missing"):
    fashion.load_classifier(tmp_path / "nothing.npz")


def test_packed_parameters_come_back(tmp_path):
  np.savez(tmp_path / "again.npz", **fashion.pack(fashion.shipped_params()))
  assert (tmp_path / "again.npz").read_bytes() == fashion.WEIGHTS.read_bytes()


def test_features_and_classes(images):
  actual, classes = fashion.fashion_features(images), fashion.classify(images)
  assert actual.shape == (7, fashion.FEATURES) and actual.dtype == np.float32 and np.isfinite(actual).all()
  assert classes.shape == (7,) and classes.dtype == np.int32 and set(classes) <= set(range(fashion.CLASSES))
  assert fashion.fashion_features(images[:0]).shape == (0, fashion.FEATURES)


def test_padding_and_batches_change_nothing(images, monkeypatch):
  padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), constant_values=99)
  monkeypatch.setattr(fashion, "BATCH", 3)
  np.testing.assert_allclose(
    fashion.fashion_features(padded), fashion.fashion_features(images), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  ("shape", "dtype"),
  [((2, 27, 28, 1), np.uint8), ((2, 28, 28, 3), np.uint8), ((28, 28), np.uint8), ((2, 28, 28, 1), float)],
)
def test_images_that_do_not_fit_are_refused(shape, dtype):
  with pytest.raises(UserError, match="expected uint8"):
    fashion.fashion_features(np.zeros(shape, dtype))


@pytest.mark.skipif(not CLOTHES.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_it_knows_clothes():
  images = read_idx(CLOTHES / "t10k-images-idx3-ubyte.gz", 3)[:1000, ..., None]
  labels = read_idx(CLOTHES / "t10k-labels-idx1-ubyte.gz", 1)[:1000]
  assert np.mean(fashion.classify(images) == labels) > 0.92
