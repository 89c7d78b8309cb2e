import dataclasses

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.data import tfds
from jldm.data.source import Arrays
from jldm.data.synthetic import Synthetic
from jldm.data.tfds import ImageData
from jldm.data.views import Mirrored, Selected, keep_labels

RANDOM = np.random.default_rng(0)
SOURCE = Arrays(
  {"image": RANDOM.integers(0, 256, (7, 3, 4, 2), dtype=np.uint8), "label": np.arange(7, dtype=np.int32)}
)


def contents(source):
  return source[np.arange(len(source))]


def digits(directory, **fields):
  return ImageData(
    name="digits",
    data_dir=str(directory),
    classes=10,
    **({"train": "train[:95%]", "held_out": "train[95%:]"} | fields),
  )


def assert_mirrored(plain, both):
  """Every example, then every example flipped left to right."""
  plain, both = contents(plain), contents(both)
  n = len(plain["label"])
  assert both["image"].dtype == np.uint8 and both["label"].dtype == np.int32
  np.testing.assert_array_equal(both["image"][:n], plain["image"])
  np.testing.assert_array_equal(both["image"][n:], np.stack([np.fliplr(image) for image in plain["image"]]))
  np.testing.assert_array_equal(both["label"], np.tile(plain["label"], 2))


# ---- mirrors


def test_the_second_half_is_the_first_in_a_mirror():
  assert len(Mirrored(SOURCE)) == 14
  assert_mirrored(SOURCE, Mirrored(SOURCE))


def test_rows_come_in_any_order_and_twice():
  rows = np.array([13, 2, 2, 9, 0])
  for name, array in Mirrored(SOURCE)[rows].items():
    np.testing.assert_array_equal(array, contents(Mirrored(SOURCE))[name][rows])


def test_a_mirror_of_a_mirror_is_the_picture():
  images = contents(Mirrored(Mirrored(SOURCE)))["image"]
  np.testing.assert_array_equal(images[21:], images[:7])


def test_only_what_is_trained_on_is_mirrored(digits_dir):
  for plain in (Synthetic(classes=3, count=10), digits(digits_dir)):
    mirrored = dataclasses.replace(plain, mirror=True)
    assert_mirrored(plain.open(plain.train), mirrored.open(plain.train))
    held_out, same = contents(plain.open(plain.held_out)), contents(mirrored.open(plain.held_out))
    np.testing.assert_array_equal(held_out["image"], same["image"])


def test_a_mirror_needs_no_more_memory(digits_dir):
  source = digits(digits_dir, mirror=True).open("train[:95%]")
  assert isinstance(source.source, Arrays) and len(source.source) == len(source) / 2


# ---- labels


def test_a_tenth_of_the_digits_has_seventeen_or_eighteen_of_each(digits_dir):
  plain = digits(digits_dir, labelled=1.0)
  labels = plain.open(plain.train).arrays["label"]
  few = dataclasses.replace(plain, labelled=0.1).open(plain.train).arrays
  known = few["label"] >= 0
  assert len(labels) == 1707 and known.sum() == round(0.1 * 1707)
  assert set(np.bincount(few["label"][known], minlength=10)) == {17, 18}
  np.testing.assert_array_equal(few["label"][known], labels[known])
  np.testing.assert_array_equal(few["image"], plain.open(plain.train).arrays["image"])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(
  "labels",
  [RANDOM.integers(0, 7, 523), RANDOM.integers(-1, 3, 100), np.full(9, -1), np.repeat([0, 5], [3, 400])],
  ids=["even", "some unknown", "unknown", "rare"],
)
def test_the_share_is_exact_and_balanced(labels, share):
  fewer = keep_labels(labels, share)
  known = fewer >= 0
  assert known.sum() == round(share * (labels >= 0).sum())
  np.testing.assert_array_equal(fewer[known], labels[known])
  there, kept = np.bincount(labels[labels >= 0], minlength=8), np.bincount(fewer[known], minlength=8)
  exhausted = kept == there
  if not exhausted.all():
    assert np.ptp(kept[~exhausted]) <= 1 and kept[exhausted].max(initial=0) <= kept[~exhausted].max()


def test_a_smaller_share_is_part_of_a_larger_one():
  labels = RANDOM.integers(0, 7, 523)
  known = [keep_labels(labels, share) >= 0 for share in (0.1, 0.2, 0.7)]
  assert (known[0] <= known[1]).all() and (known[1] <= known[2]).all()


def test_which_labels_are_kept_is_not_their_order():
  assert np.corrcoef(np.arange(1000), keep_labels(np.zeros(1000, int), 0.5))[0, 1] ** 2 < 0.02


def test_a_mirrored_picture_has_the_label_of_its_original(digits_dir):
  for plain in (Synthetic(classes=3, count=50, labelled=0.3), digits(digits_dir, labelled=0.3)):
    few = contents(plain.open(plain.train))["label"]
    assert 0 < (few < 0).sum() < len(few)
    both = contents(dataclasses.replace(plain, mirror=True).open(plain.train))["label"]
    np.testing.assert_array_equal(both, np.tile(few, 2))


def test_held_out_labels_are_kept(digits_dir):
  for data in (Synthetic(classes=3, count=50, labelled=0.0), digits(digits_dir, labelled=0.0)):
    assert contents(data.open(data.held_out))["label"].min() >= 0
    assert set(contents(data.open(data.train))["label"]) == {-1}


def test_records_too_large_for_memory_read_the_same(digits_dir, monkeypatch):
  data = digits(digits_dir, mirror=True, labelled=0.2)
  fast = data.open(data.train)
  monkeypatch.setattr(tfds, "IN_MEMORY_BYTES", 0)
  slow = data.open(data.train)
  assert isinstance(slow.source, Selected)
  rows = np.array([1706, 5, 5, 1707, 3413])
  for name, array in fast[rows].items():
    np.testing.assert_array_equal(slow[rows][name], array)


# ---- mistakes


@pytest.mark.parametrize(
  "kind", [Synthetic, lambda **fields: ImageData(name="any", **fields)], ids=["synthetic", "images"]
)
@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"labelled": 1.5}, "data.labelled=1.5; expected a share"),
    ({"labelled": -0.1}, "data.labelled=-0.1; expected a share"),
    ({"labelled": float("nan")}, "data.labelled=nan; expected a share"),
    (
      {"mirror": True, "held_out": "train"},
      "data.mirror=True where data.train and data.held_out are both 'train'",
    ),
    (
      {"labelled": 0.5, "held_out": "train"},
      "data.labelled=0.5 where data.train and data.held_out are both 'train'",
    ),
  ],
)
def test_mistakes(kind, fields, message):
  with pytest.raises(UserError) as error:
    kind(**fields).open("train")
  assert message in str(error.value) and "\n" not in str(error.value)


def test_one_split_for_both_is_legal_where_nothing_is_changed():
  assert len(Synthetic(held_out="train", count=4).open("train")) == 4


@pytest.mark.parametrize("times", [1, 9])
def test_labelled_examples_stand_several_times_in_an_epoch(times):
  data = Synthetic(classes=5, count=100, labelled=0.1, labelled_times=times)
  every = data.open("train")
  labels = every[np.arange(len(every))]["label"]
  assert len(every) == 90 + 10 * times and (labels >= 0).sum() == 10 * times
  whole, once = data.open("test"), dataclasses.replace(data, labelled_times=1).open("train")
  assert len(whole) == 100, "held-out examples are as they are"
  images = lambda source, known: {image.tobytes() for image in source[np.flatnonzero(known)]["image"]}
  known = once[np.arange(100)]["label"] >= 0
  assert images(every, labels >= 0) == images(once, known) and images(every, labels < 0) == images(
    once, ~known
  )


def test_no_label_stands_less_than_once():
  with pytest.raises(UserError, match=r"data\.labelled_times=0; expected at least 1"):
    Synthetic(labelled=0.5, labelled_times=0).open("train")
