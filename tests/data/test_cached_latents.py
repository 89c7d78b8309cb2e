import itertools
import json

import numpy as np
import pytest

from jldm.data.buckets import Buckets
from jldm.data.cached_latents import open_cache, write, write_like
from jldm.data.source import Arrays

RANDOM = np.random.default_rng(0)
ARRAYS = {"mean": RANDOM.normal(size=(23, 2, 4, 3)).astype(np.float32),
          "log_variance": RANDOM.normal(size=(23, 2, 4, 3)).astype(np.float16), "label": np.arange(23, dtype=np.int32)}


def chunks(arrays=ARRAYS, size=8):
  for start in range(0, 23, size):
    yield {name: array[start:start + size] for name, array in arrays.items()}


def contents(source):
  return source[np.arange(len(source))]


def test_what_is_written_is_read(tmp_path):
  for source in (write(tmp_path / "a" / "cache", chunks(), 23), open_cache(tmp_path / "a" / "cache")):
    assert len(source) == 23
    for name, array in contents(source).items():
      assert array.dtype == ARRAYS[name].dtype and type(array) is np.ndarray
      np.testing.assert_array_equal(array, ARRAYS[name])
    np.testing.assert_array_equal(source[np.array([5, 0, 5])]["label"], [5, 0, 5])
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["cache"]


def test_the_chunks_do_not_matter(tmp_path):
  write(tmp_path / "a", chunks(size=8), 23)
  write(tmp_path / "b", chunks(size=5), 23)
  assert (tmp_path / "a" / "index.json").read_text() == (tmp_path / "b" / "index.json").read_text()


def test_it_is_mapped_rather_than_loaded(tmp_path):
  assert all(isinstance(array, np.memmap) for array in write(tmp_path / "a", chunks(), 23).arrays.values())


def test_an_absent_cache_is_none(tmp_path):
  assert open_cache(tmp_path / "nothing") is None
  assert open_cache(tmp_path) is None


def flip_a_byte(folder):
  data = bytearray((folder / "mean.npy").read_bytes())
  data[-17] ^= 4
  (folder / "mean.npy").write_bytes(data)


def truncate(folder):
  (folder / "mean.npy").write_bytes((folder / "mean.npy").read_bytes()[:-8])


def change_index(**changes):
  def damage(folder):
    index = json.loads((folder / "index.json").read_text())
    index["arrays"]["mean"] |= changes
    (folder / "index.json").write_text(json.dumps(index))
  return damage


DAMAGE = {
  "byte": flip_a_byte, "truncated": truncate, "empty": lambda folder: (folder / "mean.npy").write_bytes(b""),
  "missing": lambda folder: (folder / "mean.npy").unlink(),
  "no index": lambda folder: (folder / "index.json").unlink(),
  "index": lambda folder: (folder / "index.json").write_text("[1]"),
  "half an index": lambda folder: (folder / "index.json").write_text('{"count": 2'),
  "shape": change_index(shape=[23, 4, 2, 3]), "dtype": change_index(dtype="<i4"),
  "pickle": lambda folder: np.save(folder / "mean.npy", np.array([{}] * 23, object)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_none_and_can_be_written_anew(tmp_path, damage):
  write(tmp_path / "a", chunks(), 23)
  damage(tmp_path / "a")
  assert open_cache(tmp_path / "a") is None
  np.testing.assert_array_equal(contents(write(tmp_path / "a", chunks(), 23))["mean"], ARRAYS["mean"])


def test_a_failure_leaves_what_was_there(tmp_path):
  write(tmp_path / "a", chunks(), 23)

  def failing():
    yield next(chunks())
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write(tmp_path / "a", failing(), 23)
  assert [path.name for path in tmp_path.iterdir()] == ["a"]
  assert open_cache(tmp_path / "a") is not None


def test_the_remains_of_a_killed_run_are_removed(tmp_path):
  (tmp_path / ".a.partial").mkdir()
  (tmp_path / ".a.partial" / "mean.npy").write_text("half")
  write(tmp_path / "a", chunks(), 23)
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


WRONG = {
  "too few": (lambda: itertools.islice(chunks(), 2), "16 rows came, 23"),
  "none": (lambda: iter(()), "0 rows came, 23"),
  "too many": (lambda: itertools.chain(chunks(), chunks()), r"\[8\] rows where 0"),
  "ragged": (lambda: iter([ARRAYS | {"label": np.arange(3)}]), r"\[3, 23\] rows"),
  "dtype": (lambda: chunks(ARRAYS | {"mean": np.array([None] * 23)}), "mean.npy: dtype object"),
  "names": (lambda: iter([next(chunks()), {"label": np.arange(15, dtype=np.int32)}]), "after one of"),
}


@pytest.mark.parametrize(("batches", "message"), WRONG.values(), ids=WRONG)
def test_batches_that_do_not_agree_are_refused(tmp_path, batches, message):
  with pytest.raises(ValueError, match=message):
    write(tmp_path / "a", batches(), 23)
  assert not list(tmp_path.iterdir())


# ---- buckets

IMAGES = Buckets(tuple(Arrays({"image": RANDOM.integers(0, 256, (count, *shape, 1), dtype=np.uint8)})
                       for count, shape in ((5, (2, 2)), (3, (1, 4)))))


def halves(source):
  """Something like an encoder, in batches of two."""
  for start in range(0, len(source), 2):
    yield {"mean": source[np.arange(start, min(start + 2, len(source)))]["image"] / np.float32(2)}


def assert_halved(cache, source=IMAGES):
  assert len(cache) == len(source) and len(cache.sources) == len(source.sources)
  for part, images in zip(cache.sources, source.sources, strict=True):
    np.testing.assert_array_equal(contents(part)["mean"], images.arrays["image"] / 2)


def test_buckets_are_written_and_read(tmp_path):
  assert_halved(write_like(tmp_path / "a", IMAGES, halves))
  assert_halved(open_cache(tmp_path / "a"))
  assert [path.name for path in tmp_path.iterdir()] == ["a"]
  assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["0", "1", "index.json"]


def test_a_plain_source_is_written_as_by_write(tmp_path):
  write_like(tmp_path / "a", IMAGES.sources[0], halves)
  write(tmp_path / "b", halves(IMAGES.sources[0]), 5)
  assert (tmp_path / "a" / "index.json").read_text() == (tmp_path / "b" / "index.json").read_text()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("number", ["0", "1"])
def test_one_damaged_bucket_is_a_damaged_cache(tmp_path, damage, number):
  write_like(tmp_path / "a", IMAGES, halves)
  damage(tmp_path / "a" / number)
  assert open_cache(tmp_path / "a") is None
  assert_halved(write_like(tmp_path / "a", IMAGES, halves))


@pytest.mark.parametrize("text", ['{"buckets": 3}', '{"buckets": 0}', '{"buckets": null}', '{"buckets"'])
def test_a_wrong_number_of_buckets_is_a_damaged_cache(tmp_path, text):
  write_like(tmp_path / "a", IMAGES, halves)
  (tmp_path / "a" / "index.json").write_text(text)
  assert open_cache(tmp_path / "a") is None


def test_a_failure_in_the_second_bucket_leaves_what_was_there(tmp_path):
  write(tmp_path / "a", chunks(), 23)

  def failing(source):
    yield from halves(source)
    if source is IMAGES.sources[1]:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write_like(tmp_path / "a", IMAGES, failing)
  assert [path.name for path in tmp_path.iterdir()] == ["a"]
  np.testing.assert_array_equal(contents(open_cache(tmp_path / "a"))["mean"], ARRAYS["mean"])
  assert_halved(write_like(tmp_path / "a", IMAGES, halves))
