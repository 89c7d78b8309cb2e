import importlib.util
import sys

import numpy as np
from PIL import Image
import pytest

from jldm.core.errors import UserError
from jldm.data import photos
from jldm.data.prepare import prepare


def coordinates(width: int, height: int) -> Image.Image:
  """A picture whose pixels say where they are: (x // 2, y // 2, noise)."""
  y, x = np.mgrid[:height, :width]
  noise = np.random.default_rng(0).integers(0, 256, (height, width))
  return Image.fromarray(np.stack([x // 2, y // 2, noise], -1).astype(np.uint8))


@pytest.fixture
def few(monkeypatch):
  """Two made photographs, few crops."""
  monkeypatch.setattr(photos, "photograph_names", lambda: ["wide", "tall"])
  monkeypatch.setattr(photos, "load_photographs", lambda: [coordinates(400, 200), coordinates(300, 400)])
  monkeypatch.setattr(photos, "COUNTS", {"train": 40, "test": 15})


def columns(split: str, widths=(400, 300)) -> list[tuple[float, float]]:
  """The least and greatest x, as a share of the photograph's width, of every crop."""
  each = []
  for crop in photos.random_crops(split, (24, 32)):
    x = 2 * np.asarray(crop.load(), np.float64)[..., 0]
    each.append((x.min() / widths[crop.photograph], (x.max() + 1) / widths[crop.photograph]))
  return each


def test_held_out_crops_share_no_pixel_with_training_crops(few):
  slack = 2 / 300  # of rounding edges, and x // 2
  low, high = photos.HELD_OUT
  held_out, training = columns("test"), columns("train")
  assert all(low - slack <= a and b <= high + slack for a, b in held_out)
  assert all(b <= low + slack or a >= high - slack for a, b in training)
  assert any(b < low for a, b in training) and any(a > high for a, b in training), "both sides are trained on"


def test_crops_are_the_same_at_every_call_and_various(few):
  first, again = (
    [np.asarray(crop.load()) for crop in photos.random_crops("train", (24, 32))] for _ in range(2)
  )
  assert len(first) == 80 and all(image.shape == (24, 32, 3) for image in first)
  np.testing.assert_array_equal(first, again)
  assert len({image.tobytes() for image in first}) > 75
  mirrored = [bool(image[0, 0, 0] > image[0, -1, 0]) for image in first]
  assert 0.25 < np.mean(mirrored) < 0.75
  assert not any(
    image.load().getpixel((0, 0))[0] > image.load().getpixel((31, 0))[0]
    for image in photos.random_crops("test", (24, 32))
  )
  steps = {round(abs(float(image[0, -1, 0]) - float(image[0, 0, 0])) / 15.5, 1) for image in first}
  assert max(steps) / min(steps) > 1.7, "at several scales"


def test_the_place_with_more_contrast_is_taken(monkeypatch):
  half = np.zeros((100, 200, 3), np.uint8)
  half[50:] = np.random.default_rng(0).integers(0, 256, (50, 200, 3))
  monkeypatch.setattr(photos, "photograph_names", lambda: ["half"])
  monkeypatch.setattr(photos, "load_photographs", lambda: [Image.fromarray(half)])
  busy = [photos.grey_contrast(crop.load()) > 10 for crop in photos.random_crops("train", (10, 10))]
  assert 0.7 < np.mean(busy) < 0.9  # of one place 0.57, of two 0.82


def test_a_size_that_does_not_fit(few):
  with pytest.raises(
    UserError, match="size 300x80 of photos, but wide has 200x160 for train; choose a smaller --size"
  ):
    list(photos.random_crops("train", (300, 80)))


def test_without_scikit_image(monkeypatch, tmp_path):
  monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(
    UserError, match=r"need the photographs of scikit-image; install it: pip install 'jldm\[photos\]'"
  ):
    prepare("photos", None, "photos", tmp_path)
  assert not list(tmp_path.iterdir())


def test_photos_take_no_source(tmp_path):
  with pytest.raises(UserError, match="leave it out"):
    prepare("photos", tmp_path, "photos", tmp_path)


def test_prepared(few, tmp_path, everything):
  prepare("photos", None, "photos", tmp_path, (24, 32))
  for split, count in photos.COUNTS.items():
    batch = everything(tmp_path, "photos", split, height=24, width=32, channels=3, classes=2)
    assert batch["image"].shape == (2 * count, 24, 32, 3)
    np.testing.assert_array_equal(np.bincount(batch["label"]), [count, count])
  assert "skimage" not in sys.modules


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed")
def test_the_photographs_themselves():
  images = photos.load_photographs()
  assert len(images) == len(photos.photograph_names()) == 6
  assert all(image.mode == "RGB" and min(image.size) >= 300 for image in images)
  for size in ((64, 64), (96, 64)):
    crops = [crop for split in photos.COUNTS for crop in photos.random_crops(split, size)]
    assert len(crops) == 6 * 770 and crops[0].load().size == size[::-1]
