import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.data.synthetic import Synthetic


def everything(data, split):
  source = data.open(split)
  return source[np.arange(len(source))]


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_dtypes(channels):
  data = Synthetic(height=12, width=20, channels=channels, classes=4, count=30)
  source = data.open("train")
  batch = source[np.array([3, 29, 3])]
  assert len(source) == 30
  assert batch["image"].shape == (3, 12, 20, channels) and batch["image"].dtype == np.uint8
  assert batch["label"].dtype == np.int32 and batch["label"].tolist() == [3, 1, 3]
  assert batch["contrast"].shape == (3, 1) and batch["contrast"].dtype == np.float32
  (spec,) = data.specs
  assert {name: (each.shape, each.dtype) for name, each in spec} == {
    name: (array.shape[1:], array.dtype) for name, array in batch.items()
  }


def test_the_contrast_is_that_of_the_picture():
  batch = everything(Synthetic(classes=3, count=40), "train")
  half = np.abs(batch["image"].astype(float) - 127.5).reshape(40, -1).max(1) / 127.5
  assert 0.5 <= batch["contrast"].min() < batch["contrast"].max() <= 1
  np.testing.assert_allclose(half, batch["contrast"][:, 0], atol=0.05)


def test_it_is_the_same_at_every_call_and_another_in_the_other_split():
  data = Synthetic(classes=3, count=10)
  np.testing.assert_array_equal(everything(data, "train")["image"], everything(data, "train")["image"])
  assert not np.array_equal(everything(data, "train")["image"], everything(data, "test")["image"])


def test_without_classes_every_label_is_unknown():
  assert set(everything(Synthetic(count=9), "train")["label"]) == {-1}


def test_classes_can_be_told_apart_and_examples_differ():
  data = Synthetic(classes=5, count=200)
  spectra = {}
  for split in ("train", "test"):
    batch = everything(data, split)
    assert len(np.unique(batch["image"].reshape(200, -1), axis=0)) == 200
    spectra[split] = np.abs(np.fft.fft2(batch["image"][..., 0] - 127.5)).reshape(200, -1), batch["label"]
  (known, labels), (asked, expected) = spectra["train"], spectra["test"]
  centres = np.stack([known[labels == label].mean(0) for label in range(5)])
  nearest = ((asked[:, None] - centres) ** 2).sum(-1).argmin(1)
  assert (nearest == expected).mean() > 0.95


def test_pictures_are_smooth():
  image = everything(Synthetic(classes=3, count=20), "train")["image"].astype(float)
  assert np.abs(np.diff(image, axis=2)).max() < 128 and image.std() > 40


def test_an_unknown_split_is_refused():
  with pytest.raises(UserError, match=r"'tain'.*'train' or 'test'"):
    Synthetic().open("tain")
