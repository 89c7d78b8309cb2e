"""What flax.serialization writes is read; whatever else a file holds, our errors alone are raised."""

import tracemalloc

from flax import serialization
from hypothesis import HealthCheck, given, settings, strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.interop import msgpack

RNG = np.random.default_rng(0)
TREE = {
  "a": {
    "kernel": RNG.normal(size=(3, 3, 2, 40)).astype(np.float32),
    "bias": RNG.normal(size=300).astype(np.float16),
  },
  "b": {"c": {"scale": np.asarray(RNG.normal(size=70_000), jnp.bfloat16)}, "n": np.zeros((), np.int32)},
  "with_a_name_of_more_than_thirty_one_letters": {f"{i}": np.float64([i]) for i in range(20)},
}


@pytest.fixture
def path(tmp_path):
  return tmp_path / "x.msgpack"


def test_what_flax_writes_is_read(path):
  path.write_bytes(serialization.to_bytes(TREE))
  actual = msgpack.tensors(path)
  assert len(actual) == 24 and actual["b/n"].shape == ()
  for name, value in (
    ("a/kernel", TREE["a"]["kernel"]),
    ("a/bias", TREE["a"]["bias"]),
    ("b/c/scale", TREE["b"]["c"]["scale"]),
  ):
    assert actual[name].dtype == value.dtype and actual[name].shape == value.shape
    assert actual[name].tobytes() == value.tobytes() and not actual[name].flags.writeable
  assert actual["with_a_name_of_more_than_thirty_one_letters/7"] == [7]


def array(shape=b"\x91\x02", dtype=b"\xa7float32", data=b"\xc4\x08" + bytes(8), kind=1, size=None) -> bytes:
  content = b"\x93" + shape + dtype + data
  return bytes([0xC7, len(content) if size is None else size, kind]) + content


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "empty file"),
    (b"\x93\x01\x02\x03", r"3 exceeds max_array_len\(0\)"),
    (b"\xc1", "FormatError"),
    (b"\x81\xa1a\x05", "a is int, where flax has a map or an array"),
    (b"\x81\x05" + array(), "int is not allowed for map key"),
    (b"\x82\xa1a" + array() + b"\xa1a" + array(), "it has 'a' twice"),
    (b"\x81\xa1a" + array() + b"\0", "received extra data"),
    (b"\x81\xa1a" + array()[:-1], "incomplete input"),
    (b"\x81\xa1a" + array(kind=2), "a is of extension 2"),
    (b"\x81\xa1a" + array(dtype=b"\xa6object"), "a has dtype object, none of float32"),
    (b"\x81\xa1a" + array(shape=b"\x91\x03"), r"a is float32 \[3\] and has 8 bytes"),
    (
      b"\x81\xa1a" + array(shape=b"\x92\xcf" + b"\xff" * 8 + b"\x01"),
      r"a is float32 \[18446744073709551615, 1\]",
    ),
    (b"\x81\xa1a" + array(size=19), "received extra data"),
    (b"\x81\xa1a" + array(size=22) + b"\0", r"a is not \[shape, dtype, bytes\]"),
    (b"\x81\xa1a" + array(shape=b"\x92\0\xcf" + b"\xff" * 8, data=b"\xc4\x00"), "no msgpack file"),
    (b"\x81\xa1a" + array(shape=b"\x91\xff"), r"a has shape \[-1\], not a list of whole numbers"),
    (b"\x81\xa1a" + array(shape=b"\x91\xc3"), r"a has shape \[True\]"),
    (b"\x81\xa1a" + array(data=b"\xa8" + b"a" * 8), "a has str, where flax has bytes"),
    (b"\x81\xa1a\x90", "a is list, where flax has a map or an array"),
    (b"\x81\xa1a\xd7\xff" + bytes(8), "a is Timestamp"),
    (b"\x81\xa1a\x81\xc4\x01b\xc0", r"max_bin_len\(0\)"),
    (b"\x81\xa1a" + array(shape=b"\xdc\x00\x20" + b"\x01" * 32), r"a is not \[shape, dtype, bytes\]"),
    (b"\x81\xa1\n" + array(), "not printable"),
    (b"\x81\xa1\xff" + array(), "'utf-8' codec can't decode"),
    (b"\x81\xdb\xff\xff\xff\xff", "incomplete input"),
    (b"\xdf\xff\xff\xff\xff", r"4294967295 exceeds max_map_len\(2\)"),
    (b"\x81\xa1a" * 40 + b"\x80", "more than 16 deep"),
  ],
)
def test_what_flax_has_not_written_is_reported(path, content, message):
  path.write_bytes(content)
  with pytest.raises(UserError, match=message) as error:
    msgpack.tensors(path)
  assert str(error.value).isprintable() and str(path) in str(error.value)


def test_what_is_no_file_is_reported(tmp_path):
  for name, message in (("missing", "No such file"), (".", "directory")):
    with pytest.raises(UserError, match=message):
      msgpack.tensors(tmp_path / name)


SOUND = serialization.to_bytes({"a": {"b": np.zeros((2, 3), np.float32)}, "c": np.zeros(4, np.float16)})


@settings(
  max_examples=300,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
  st.one_of(
    st.binary(max_size=100),
    st.builds(
      lambda at, new: SOUND[:at] + new + SOUND[at + len(new) :],
      st.integers(0, len(SOUND)),
      st.binary(max_size=6),
    ),
    st.builds(lambda at: SOUND[:at], st.integers(0, len(SOUND))),
    st.builds(
      lambda kind, rest: b"\x81\xa1a" + bytes([kind]) + rest, st.integers(0, 255), st.binary(max_size=60)
    ),
  )
)
def test_whatever_a_file_holds_our_errors_alone_are_raised(path, content):
  path.write_bytes(content)
  tracemalloc.start()
  try:
    actual = msgpack.tensors(path)
    assert sum(actual[name].nbytes for name in actual) <= len(content)
  except UserError as error:
    assert str(error).isprintable()
  finally:
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
  assert peak < 1e6
