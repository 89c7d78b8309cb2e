"""Classes of unequal size are drawn equally often, by a pure function of seed and step."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.data.balance import balance, check_balance, describe_classes, read_labels
from jldm.data.batches import read_batch
from jldm.data.buckets import Buckets
from jldm.data.source import Arrays
from jldm.data.synthetic import Synthetic
from jldm.data.views import Mirrored, Selected

COUNTS = {-1: 2, 0: 1, 1: 7, 2: 40}


def skewed(shuffle=0):
  labels = np.repeat(np.array(list(COUNTS)), list(COUNTS.values())).astype(np.int32)
  labels = np.random.default_rng(shuffle).permutation(labels)
  image = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
  return Arrays({"image": image, "label": labels})


def batches(source, steps, size=6, seed=3):
  return [read_batch(source, seed, size, step) for step in range(steps)]


def test_classes_come_equally_often_and_examples_of_a_class_too():
  data = skewed()
  drawn = batches(balance(data, data), 100)
  labels = np.concatenate([batch["label"] for batch in drawn])
  for end in range(1, len(labels)):
    counts = [(labels[:end] == label).sum() for label in COUNTS]
    assert max(counts) - min(counts) <= 1, end
  images = np.concatenate([batch["image"][:, 0, 0, 0] for batch in drawn])
  for label in COUNTS:
    times = [(images == row).sum() for row in np.flatnonzero(data.arrays["label"] == label)]
    assert max(times) - min(times) <= 1 and sum(times) == len(labels) / len(COUNTS)
  rounds = labels.reshape(-1, len(COUNTS))
  assert len({tuple(each) for each in rounds}) > 10, "in an order that is drawn anew"


def test_a_batch_depends_on_seed_and_step_alone_and_processes_read_parts_of_it():
  data = skewed()
  whole = batches(balance(data, data), 20)
  later = read_batch(balance(data, data), 3, 6, 17)
  parts = [read_batch(balance(data, data), 3, 6, 17, np.arange(6)[i::2]) for i in range(2)]
  for name, array in whole[17].items():
    np.testing.assert_array_equal(later[name], array)
    np.testing.assert_array_equal(np.stack([part[name] for part in parts], 1).reshape(array.shape), array)
  other = read_batch(balance(data, data), 4, 6, 17)
  assert (other["image"] != later["image"]).any()


def test_labels_are_those_of_views_and_of_every_bucket():
  data = skewed()
  view = Mirrored(Selected(data, np.arange(10), np.arange(10) % 3))
  np.testing.assert_array_equal(read_labels(view), view[np.arange(20)]["label"])
  moments = Arrays({"mean": np.arange(50.0)})
  pair = balance(Buckets((moments, moments)), Buckets((data, skewed(1))))
  for source, labels in zip(pair.sources, (data.arrays["label"], skewed(1).arrays["label"])):
    drawn = np.concatenate([read_batch(source, 0, 8, step)["mean"] for step in range(5)]).astype(int)
    assert np.unique(labels[drawn], return_counts=True)[1].tolist() == [10] * 4


def test_without_labels_it_is_refused():
  with pytest.raises(
    UserError, match=r"data.balance=True and data.classes=0.*expected the number of classes"
  ):
    Synthetic(balance=True).open("train")
  wanted = SimpleNamespace(balance=True)
  for arrays, words in (
    ({"image": np.zeros((2, 1))}, "the data has image; expected a label"),
    ({"label": np.full(2, -1)}, "no training example has a label"),
  ):
    with pytest.raises(UserError, match=words):
      check_balance(wanted, Arrays(arrays))
  check_balance(SimpleNamespace(balance=False), Arrays({"label": np.full(2, -1)}))


def test_counts_are_one_line():
  assert describe_classes(skewed().arrays["label"], ["cat"]) == "no label 2, cat 1, 1 7, 2 40"
  assert describe_classes(np.arange(50), []).endswith("39 1, 10 more")


def test_what_is_held_out_or_compared_with_is_not_balanced():
  data = Synthetic(classes=3, count=7, balance=True, height=4, width=4)
  assert not data.without_augmentation().balance and len(data.open("train")) == 7
  assert dataclasses.replace(data, balance=False).open("test")[np.arange(7)]["label"].tolist() == (
    data.open("test")[np.arange(7)]["label"].tolist()
  )
