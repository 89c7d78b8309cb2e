"""Clothes with captions, composed of files like Fashion-MNIST's."""

import collections
import gzip
import json
import struct

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.data import clothes
from jldm.data.clothes import COLOURS, COUNTS, THINGS, Scene, read_caption, write_caption
from jldm.data.prepare import prepare
from jldm.data.tfds import ImageData
from jldm.models.conditioners.text import caption_text

EVERY = [
  Scene((a, s), (b, t))
  for a in range(len(COLOURS))
  for b in (0, 3)
  for s in range(len(THINGS))
  for t in (0, 1, 9)
]


def write_things(folder, count=60):
  """Squares whose brightness is their class: 28x28, in files named as Debian has them."""
  folder.mkdir()
  labels = np.arange(count, dtype=np.uint8) % 10
  images = np.zeros((count, 28, 28), np.uint8)
  images[:, 4:24, 4:24] = (100 + 10 * labels)[:, None, None]
  for stem in ("train", "t10k"):
    for suffix, array in (("images-idx3", images), ("labels-idx1", labels)):
      header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
      (folder / f"{stem}-{suffix}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
  return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  root = tmp_path_factory.mktemp("clothes")
  prepare("clothes", write_things(root / "things"), "clothes", root / "data")
  return root / "data"


def read(data_dir, split):
  data = ImageData(name="clothes", data_dir=str(data_dir), width=64, channels=3, caption=64)
  source = data.open(split)
  batch = source[np.arange(len(source))]
  return batch["image"], [caption_text(each) for each in batch["caption"]]


@pytest.mark.parametrize("left_first", [True, False])
def test_captions_are_read_back_whichever_is_named_first(left_first):
  assert all(read_caption(write_caption(scene, left_first)) == scene for scene in EVERY)
  one = Scene((0, 8), (4, 0))
  assert write_caption(one, True) == "a red bag left of a blue t-shirt"
  assert write_caption(one, False) == "a blue t-shirt right of a red bag"
  assert max(len(write_caption(scene, left_first)) for scene in EVERY) <= 64


@pytest.mark.parametrize(
  "text", ["", "a red bag", "a mauve bag left of a red bag", "a red bag above a red bag"]
)
def test_other_captions_are_refused(text):
  with pytest.raises(UserError, match="expected one such as 'a red bag right of a blue t-shirt'"):
    read_caption(text)


def test_a_picture_is_what_its_caption_says(data_dir):
  for split in COUNTS:
    images, captions = read(data_dir, split)
    for image, scene in zip(images, map(read_caption, captions), strict=True):
      for side, (colour, thing) in enumerate(scene):
        half = image[:, 32 * side : 32 * side + 32]
        assert not half[:2].any() and not half[:, -2:].any()
        expected = np.array(list(COLOURS.values())[colour]) / 255 * (100 + 10 * thing)
        np.testing.assert_array_equal(half[16, 16], np.rint(expected))


def test_every_thing_has_one_colour_that_it_never_has_in_training(data_dir):
  pairs = {
    split: {pair for caption in read(data_dir, split)[1] for pair in read_caption(caption)}
    for split in COUNTS
  }
  assert not pairs["unseen"] & (pairs["train"] | pairs["test"])
  assert pairs["unseen"] == {(thing % 6, thing) for thing in range(10)}
  words = lambda split: [set(each) for each in zip(*pairs[split])]
  assert words("unseen") == words("train") == [set(range(6)), set(range(10))], "every word is known"


def test_the_order_of_words_says_nothing_of_sides():
  """Of 1,000 captions half name the left thing first, whatever the things are."""
  random = np.random.default_rng(0)
  things = np.zeros((2000, 28, 28), np.uint8), random.integers(0, 10, 2000).astype(np.uint8)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(clothes, "read_things", lambda *args: things)
    examples = list(clothes.draw_examples(None, "train", 0))
  left = np.array([" left of " in each.caption for each in examples])
  assert len(examples) == 1000 and 0.45 < left.mean() < 0.55
  first = collections.Counter(
    each.caption.split(" left of ")[0] for each in examples if " left of " in each.caption
  )
  assert len(first) == 50


def test_it_is_the_same_every_time_and_says_whose_pictures_they_are(data_dir, tmp_path):
  folder = prepare("clothes", data_dir.parent / "things", "clothes", tmp_path)
  for split in COUNTS:
    for one, other in zip(read(data_dir, split), read(tmp_path, split)):
      np.testing.assert_array_equal(one, other)
  metadata = json.loads((folder / "metadata.json").read_text())
  assert metadata["notes"] == ["clothes of Fashion-MNIST (Zalando SE, MIT licence)"]
  assert metadata["classes"] == []


def test_missing_files_are_named(tmp_path):
  with pytest.raises(UserError, match=r"'.*nowhere' does not exist; install Debian's dataset-fashion-mnist"):
    prepare("clothes", tmp_path / "nowhere", "clothes", tmp_path / "data")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz"):
    prepare("clothes", tmp_path / "empty", "clothes", tmp_path / "data")
  assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())
