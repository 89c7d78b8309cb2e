import itertools
import json

import numpy as np
import pytest

from jldm.data.buckets import Buckets
from jldm.data.source import Arrays
from jldm.storage import array_cache
from jldm.storage.array_cache import open_cache, open_part, write_cache, write_part

RANDOM = np.random.default_rng(0)
ARRAYS = {
  "mean": RANDOM.normal(size=(23, 2, 4, 3)).astype(np.float32),
  "log_variance": RANDOM.normal(size=(23, 2, 4, 3)).astype(np.float16),
  "label": np.arange(23, dtype=np.int32),
}


def chunks(arrays=ARRAYS, size=8):
  for start in range(0, 23, size):
    yield {name: array[start : start + size] for name, array in arrays.items()}


def contents(source):
  return source[np.arange(len(source))]


def test_what_is_written_is_read(tmp_path):
  for source in (write_part(tmp_path / "a" / "cache", chunks(), 23), open_part(tmp_path / "a" / "cache")):
    assert len(source) == 23
    for name, array in contents(source).items():
      assert array.dtype == ARRAYS[name].dtype and type(array) is np.ndarray
      np.testing.assert_array_equal(array, ARRAYS[name])
    np.testing.assert_array_equal(source[np.array([5, 0, 5])]["label"], [5, 0, 5])
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["cache"]


def test_the_chunks_do_not_matter(tmp_path):
  write_part(tmp_path / "a", chunks(size=8), 23)
  write_part(tmp_path / "b", chunks(size=5), 23)
  assert (tmp_path / "a" / "index.json").read_text() == (tmp_path / "b" / "index.json").read_text()


def test_it_is_mapped_rather_than_loaded(tmp_path):
  assert all(
    isinstance(array, np.memmap) for array in write_part(tmp_path / "a", chunks(), 23).arrays.values()
  )


def test_an_absent_part_is_none(tmp_path):
  assert open_part(tmp_path / "nothing") is None
  assert open_part(tmp_path) is None


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
  "byte": flip_a_byte,
  "truncated": truncate,
  "empty": lambda folder: (folder / "mean.npy").write_bytes(b""),
  "missing": lambda folder: (folder / "mean.npy").unlink(),
  "no index": lambda folder: (folder / "index.json").unlink(),
  "index": lambda folder: (folder / "index.json").write_text("[1]"),
  "half an index": lambda folder: (folder / "index.json").write_text('{"count": 2'),
  "shape": change_index(shape=[23, 4, 2, 3]),
  "dtype": change_index(dtype="<i4"),
  "pickle": lambda folder: np.save(folder / "mean.npy", np.array([{}] * 23, object)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_part_is_none_and_can_be_written_anew(tmp_path, damage):
  write_part(tmp_path / "a", chunks(), 23)
  damage(tmp_path / "a")
  assert open_part(tmp_path / "a") is None
  np.testing.assert_array_equal(contents(write_part(tmp_path / "a", chunks(), 23))["mean"], ARRAYS["mean"])


def test_a_failure_leaves_what_was_there(tmp_path):
  write_part(tmp_path / "a", chunks(), 23)

  def failing():
    yield next(chunks())
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    write_part(tmp_path / "a", failing(), 23)
  assert [path.name for path in tmp_path.iterdir()] == ["a"]
  assert open_part(tmp_path / "a") is not None


def test_the_remains_of_a_killed_run_are_removed(tmp_path):
  (tmp_path / ".a.partial").mkdir()
  (tmp_path / ".a.partial" / "mean.npy").write_text("half")
  write_part(tmp_path / "a", chunks(), 23)
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
    write_part(tmp_path / "a", batches(), 23)
  assert not list(tmp_path.iterdir())


# ---- a cache of parts, of one source or of buckets

IMAGES = Buckets(
  tuple(
    Arrays({"image": RANDOM.integers(0, 256, (count, *shape, 1), dtype=np.uint8)})
    for count, shape in ((5, (2, 2)), (3, (1, 4)))
  )
)


@pytest.fixture(autouse=True)
def two_rows_a_part(monkeypatch):
  monkeypatch.setattr(array_cache, "PART", 2)


def halves(part):
  """Something like an encoder, one by one."""
  for row in range(len(part)):
    yield {"mean": part[np.array([row])]["image"] / np.float32(2)}


def assert_halved(cache, source=IMAGES):
  assert len(cache) == len(source) and len(cache.sources) == len(source.sources)
  for part, images in zip(cache.sources, source.sources, strict=True):
    np.testing.assert_array_equal(contents(part)["mean"], images.arrays["image"] / 2)


def test_buckets_are_written_and_read(tmp_path):
  assert_halved(write_cache(tmp_path / "a", IMAGES, halves))
  assert_halved(open_cache(tmp_path / "a"))
  assert [path.name for path in tmp_path.iterdir()] == ["a"]
  assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
    "0-0",
    "0-1",
    "0-2",
    "1-0",
    "1-1",
    "index.json",
  ]


def test_a_plain_source_is_read_in_any_order(tmp_path):
  images = IMAGES.sources[0]
  cache, rows = write_cache(tmp_path / "a", images, halves), np.array([4, 0, 3, 4, 1])
  assert len(cache) == 5
  np.testing.assert_array_equal(cache[rows]["mean"], images.arrays["image"][rows] / 2)
  assert cache[rows]["mean"].dtype == np.float32


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", ["0-0", "1-1"])
def test_a_damaged_part_is_a_damaged_cache_and_is_made_again_alone(tmp_path, damage, name):
  write_cache(tmp_path / "a", IMAGES, halves)
  damage(tmp_path / "a" / name)
  assert open_cache(tmp_path / "a") is None
  made = []
  assert_halved(write_cache(tmp_path / "a", IMAGES, lambda part: made.append(part) or halves(part)))
  assert len(made) == 1


@pytest.mark.parametrize(
  "text",
  [
    '{"parts": [3, 2, 1], "buckets": true}',
    '{"parts": [3, 3], "buckets": true}',
    '{"parts": [0, 2], "buckets": true}',
    '{"parts": [], "buckets": true}',
    '{"parts": null}',
    '{"parts": [3, 2]}',
    '{"parts"',
    "[1]",
    '{"parts": ["3"], "buckets": false}',
  ],
)
def test_another_number_of_parts_is_a_damaged_cache(tmp_path, text):
  write_cache(tmp_path / "a", IMAGES, halves)
  (tmp_path / "a" / "index.json").write_text(text)
  assert open_cache(tmp_path / "a") is None


def test_whoever_is_interrupted_goes_on(tmp_path):
  made = []

  def failing(part):
    if len(made) == 3:
      raise KeyboardInterrupt
    made.append(part)
    return halves(part)

  with pytest.raises(KeyboardInterrupt):
    write_cache(tmp_path / "a", IMAGES, failing)
  assert open_cache(tmp_path / "a") is None
  (tmp_path / "a" / "left.npy").write_text("by another version")
  assert_halved(write_cache(tmp_path / "a", IMAGES, lambda part: made.append(part) or halves(part)))
  assert len(made) == 5 and not (tmp_path / "a" / "left.npy").exists()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_processes_share_the_parts(tmp_path, count):
  made = [[] for _ in range(count)]
  absent = lambda: None
  for process in reversed(range(count)):
    encode = lambda part, process=process: made[process].append((part.start, len(part))) or halves(part)
    if process:
      with pytest.raises(OSError, match="cannot be read after it was written"):  # the first has not come yet
        write_cache(tmp_path / "a", IMAGES, encode, process, count, absent)
    else:
      assert_halved(write_cache(tmp_path / "a", IMAGES, encode, process, count, absent))
  assert sum(map(len, made)) == 5 and max(map(len, made)) - min(map(len, made)) <= 1
