"""Files of arrays that claim, or unpack to, more than there is memory; damage of any byte."""

import gzip
import io
import os
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.data.arrays import read_idx, read_npz
from jldm.data.prepare import prepare

IMAGES, LABELS = np.arange(4 * 9, dtype=np.uint8).reshape(4, 3, 3), np.arange(4)


@pytest.fixture
def little_memory():
  """Fails a test that takes more than 64 MiB."""
  tracemalloc.start()
  yield
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 2**26


def write_npz(path, shape, data=b"", descr="|u1"):
  """An .npz whose header says `shape`, followed by `data`."""
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("images.npy", file.getvalue() + data)
  return path


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("shape", [(10**5, 10**5, 10**5), (9 * 2**30, 1, 1), (2**62, 2**62, 2**62)])
def test_a_claim_is_refused_before_memory_is_taken(tmp_path, shape):
  with pytest.raises(
    UserError, match=r"a\.npz' has arrays of \d+ bytes, more than max_bytes=\d+; .*--max-bytes"
  ):
    read_npz(write_npz(tmp_path / "a.npz", shape))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("shape", [(10**3, 10**3, 10**3), (-1, 3, 3), (-3, -3, 1)])
def test_a_claim_that_the_file_does_not_hold_is_refused(tmp_path, shape):
  with pytest.raises(UserError, match=r"a\.npz' cannot be read as .npz .*of shape|a\.npz' cannot be read"):
    read_npz(write_npz(tmp_path / "a.npz", shape, bytes(100)))


def test_what_unpacks_to_more_than_the_limit_needs_the_option(tmp_path, everything):
  np.savez_compressed(tmp_path / "a.npz", images=np.zeros((1000, 16, 16), np.uint8))
  assert os.path.getsize(tmp_path / "a.npz") < 5000
  with pytest.raises(UserError, match=r"arrays of 256000 bytes, more than max_bytes=255999; .*--max-bytes"):
    prepare("npz", tmp_path / "a.npz", "some", tmp_path, max_bytes=255_999)
  prepare("npz", tmp_path / "a.npz", "some", tmp_path, max_bytes=256_000)
  assert len(everything(tmp_path, "some", height=16, width=16)["image"]) == 1000


@pytest.mark.parametrize("label", [10**6, 2**40, 2**62])
def test_labels_that_cannot_be_classes_are_refused(tmp_path, label):
  np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS + label)
  with pytest.raises(UserError, match=f"a label {label + 3}; expected labels below 1000000"):
    prepare("npz", tmp_path / "a.npz", "some", tmp_path / "data")


@pytest.mark.parametrize("seed", range(4))
def test_any_byte_of_an_npz_may_be_wrong(tmp_path, seed):
  draw, path = random.Random(seed), tmp_path / "a.npz"
  (np.savez if seed % 2 else np.savez_compressed)(path, images=IMAGES, labels=LABELS)
  data = path.read_bytes()
  for _ in range(150):
    damaged = bytearray(data[: draw.choice((len(data), draw.randrange(1, len(data))))])
    for _ in range(draw.randint(1, 5)):
      damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    path.write_bytes(damaged)
    try:
      images, labels = read_npz(path)
      assert images.dtype == np.uint8 and (labels is None or len(labels) == len(images))
    except UserError as error:
      assert "\n" not in str(error) and "a.npz" in str(error)


def idx(shape, data=b""):
  return struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + data


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_that_claims_petabytes_is_refused(tmp_path, pack):
  path = tmp_path / "a"
  path.write_bytes(pack(idx((2**31, 2**10, 2**10), bytes(50))))
  with pytest.raises(
    UserError, match=r"a' has \d+ bytes of data by its shape .*more than max_bytes=.*--max-bytes"
  ):
    read_idx(path, 3)


@pytest.mark.usefixtures("little_memory")
def test_an_idx_that_unpacks_to_more_than_it_claims_is_not_unpacked(tmp_path):
  path = tmp_path / "a.gz"
  with gzip.open(path, "wb") as file:
    file.write(idx((2, 3, 3)))
    for _ in range(200):
      file.write(bytes(2**20))
  with pytest.raises(UserError, match=r"a\.gz' has at least 65554 bytes of data; expected 18"):
    read_idx(path, 3)


def test_an_idx_within_the_limit(tmp_path):
  (tmp_path / "a").write_bytes(idx((4, 3, 3), IMAGES.tobytes()))
  np.testing.assert_array_equal(read_idx(tmp_path / "a", 3, max_bytes=36), IMAGES)
  with pytest.raises(UserError, match=r"36 bytes .*max_bytes=35"):
    read_idx(tmp_path / "a", 3, max_bytes=35)


def test_what_is_no_file_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "fifo")
  for path in (tmp_path / "fifo", "/dev/zero", tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
      read_npz(path)
    with pytest.raises(UserError, match="cannot be read"):
      read_idx(path, 3)
  with pytest.raises(UserError, match="is something else; prepare npz expects"):
    prepare("npz", tmp_path / "fifo", "some", tmp_path / "data")
