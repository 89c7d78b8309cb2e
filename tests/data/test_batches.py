import itertools

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.data import tfds
from jldm.data.batches import batches
from jldm.data.source import Arrays
from jldm.data.tfds import ImageData

SOURCE = Arrays(
  {"image": np.arange(53 * 4, dtype=np.uint8).reshape(53, 2, 2, 1), "label": np.arange(53, dtype=np.int32)}
)


def run(start, stop, **options):
  return list(batches(SOURCE, 5, 12, start, stop, **options))


def assert_same(these, those):
  assert len(these) == len(those)
  for one, other in zip(these, those, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      assert one[name].dtype == other[name].dtype
      np.testing.assert_array_equal(one[name], other[name])


def test_contents_and_dtypes():
  first = run(0, 1)[0]
  assert {name: (array.shape, array.dtype.name) for name, array in first.items()} == {
    "image": ((12, 2, 2, 1), "uint8"),
    "label": ((12,), "int32"),
    "row": ((12,), "int32"),
    "stratum": ((12,), "float32"),
  }
  np.testing.assert_array_equal(first["row"], np.arange(12))
  np.testing.assert_allclose(first["stratum"], np.arange(12) / 12, rtol=1e-7)
  np.testing.assert_array_equal(first["image"], SOURCE.arrays["image"][first["label"]])


def test_every_epoch_sees_each_example_once():
  labels = np.concatenate([batch["label"] for batch in run(0, 53)])  # 12 epochs of 53
  for epoch in labels.reshape(12, 53):
    assert sorted(epoch) == list(range(53))


@pytest.mark.parametrize("start", [1, 4, 5, 19])
def test_a_resumed_run_sees_what_it_would_have_seen(start):
  assert_same(run(start, 20), run(0, 20)[start:])


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_number_of_processes_changes_nothing(processes):
  shares = [run(3, 17, rows=rows) for rows in np.arange(12).reshape(processes, -1)]
  together = [
    {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for parts in zip(*shares, strict=True)
  ]
  assert_same(together, run(3, 17))


@pytest.mark.parametrize("threads", [1, 4])
def test_the_number_of_threads_changes_nothing(threads):
  assert_same(run(0, 30, threads=threads), run(0, 30))


def test_records_are_read_as_memory_is(digits_dir, monkeypatch):
  data = ImageData(name="digits", data_dir=str(digits_dir), classes=10)
  fast = list(batches(data.open("train"), 0, 32, 50, 60))
  monkeypatch.setattr(tfds, "IN_MEMORY_BYTES", 0)
  assert_same(list(batches(data.open("train"), 0, 32, 50, 60, threads=4)), fast)


def test_no_steps_are_no_batches():
  assert run(7, 7) == []


def test_an_endless_run_can_be_left():
  assert len(list(itertools.islice(batches(SOURCE, 0, 12, 0, 10**9), 3))) == 3


def test_an_error_of_the_source_arrives_as_it_is():
  class Broken(Arrays):
    def __getitem__(self, rows):
      raise UserError("label 12")

  with pytest.raises(UserError, match="label 12"):
    next(batches(Broken(SOURCE.arrays), 0, 12, 0, 2))
