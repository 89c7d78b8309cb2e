"""Round trips, the other implementation's layout written by hand, and hundreds of broken files."""

import json
import os
from pathlib import Path
import struct
import subprocess
import sys
import tracemalloc

from hypothesis import HealthCheck, given, settings, strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors as published

from jldm.core.errors import UserError
from jldm.interop import safetensors
from tests.interop.later import LATER

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
TENSORS = {
  "conv/kernel": RNG.normal(size=(3, 3, 2, 4)).astype(np.float32),
  "conv/bias": RNG.normal(size=4).astype(np.float16),
  "brain": np.asarray(RNG.normal(size=(5,)), jnp.bfloat16),
  "eight": np.asarray([0.5, -2.0, 448.0], jnp.float8_e4m3fn),
  "count": np.int64(7),
  "yes": np.array([True, False, True]),
  "none": np.zeros((0, 3), np.uint8),
  "größe": np.arange(6, dtype=np.uint16)[::2],
}


def stored(header, data: bytes = b"") -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + data


def one(dtype="F32", shape=(2,), offsets=(0, 8), name="a", **more):
  return {name: {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)} | more}


def refused(path, content: bytes) -> str:
  path.write_bytes(content)
  with pytest.raises(UserError) as error:
    safetensors.read(path)
  reason = str(error.value)
  assert (
    repr(str(path)) in reason
    and f"of {len(content)} bytes" in reason
    and reason.isprintable()
    and len(reason) < 500 + len(str(path))
  )
  return reason


@pytest.fixture
def path(tmp_path):
  return tmp_path / "x.safetensors"


def test_what_is_written_is_read(path):
  safetensors.write(path, TENSORS, {"kind": "test", "a": "b"})
  actual = safetensors.read(path)
  assert actual.keys() == TENSORS.keys()
  for name, value in TENSORS.items():
    assert actual[name].dtype == value.dtype and actual[name].shape == np.shape(value), name
    assert actual[name].tobytes() == np.asarray(value).tobytes(), name
    assert not actual[name].flags.writeable and actual[name].flags.aligned
  assert safetensors.read_header(path).metadata == {"a": "b", "kind": "test"}
  assert os.listdir(path.parent) == [path.name]


def test_the_same_arrays_give_the_same_bytes(path):
  safetensors.write(path, TENSORS)
  first = path.read_bytes()
  safetensors.write(path, dict(reversed(TENSORS.items())))
  assert path.read_bytes() == first


def test_the_format_as_others_write_it(path):
  """By hand from the published description: an unpadded header, gapless data that need not be aligned
  or in order.
  """
  data = struct.pack("<B", 3) + struct.pack("<2f", 1.5, -2.0) + struct.pack("<H", 0x3FC0)
  header = one(offsets=(1, 9)) | one("U8", (), (0, 1), "b") | one("BF16", (1, 1), (9, 11), "c")
  path.write_bytes(stored({"__metadata__": {"format": "pt"}} | header, data))
  actual = safetensors.read(path)
  assert (
    actual["a"].tolist() == [1.5, -2]
    and actual["b"].tolist() == 3
    and actual["c"].astype(np.float32).tolist() == [[1.5]]
  )
  assert safetensors.read_header(path).metadata == {"format": "pt"}


def test_nothing_but_the_header_is_read_before_use(path):
  """A sparse file of 4 GiB."""
  size = 2**32
  with open(path, "wb") as file:
    file.write(stored(one("U8", (size,), (0, size))))
    file.truncate(file.tell() + size)
  assert safetensors.read(path)["a"][-1] == 0


@pytest.mark.parametrize(
  "content, reason",
  [
    (b"", "0 bytes"),
    (struct.pack("<Q", 2**63) + b"{}", "header too large"),
    (struct.pack("<Q", 2**20) + b"{}", "of 10 bytes, is no sound safetensors file: invalid header length"),
    (stored(b"[]"), "invalid type: sequence"),
    (stored(b" {}"), "no JSON object"),
    (stored(b'{"a":'), "invalid JSON"),
    (stored(b'{"a":"\xff"}'), "invalid UTF-8"),
    (stored(b'{"a":' * 100_000), "recursion limit exceeded"),
    (stored(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "recursion limit exceeded"),
    (stored(b'{"a":' + b"9" * 10_000 + b"}"), "number out of range"),
    (stored(b'{"a":1e999}'), "number out of range"),
    (stored(b'{"a":NaN}'), "invalid JSON in header: expected value"),
    (stored(b'{"a":{"dtype":"U8","dtype":"I8"}}'), "duplicate field `dtype`"),
    (stored(b'{"a":1,"a":2}'), "invalid type: integer `1`, expected struct TensorInfo"),
    (
      stored(json.dumps(one())[:-1].encode() + b"," + json.dumps(one())[1:].encode(), bytes(8)),
      "a name twice",
    ),
    (stored({"__metadata__": []}), "invalid type: sequence, expected a map"),
    (stored({"__metadata__": {"a": 1}}), "invalid type: integer `1`, expected a string"),
    (stored({"a": 5}), "invalid type: integer `5`, expected struct TensorInfo"),
    (stored(one(extra=1), bytes(8)), "other members than"),
    (stored(one(name=""), bytes(8)), "empty or not printable"),
    (stored(one(name="a\n"), bytes(8)), "not printable"),
    (stored(one(name="\ud800"), bytes(8)), "hex escape"),
    (stored(one("O"), bytes(8)), "unknown variant `O`, expected one of `BOOL`"),
    (stored(one(["F32"]), bytes(8)), "invalid type: sequence, expected string or map"),
    (stored(one(shape=(-2,)), bytes(8)), "integer `-2`, expected usize"),
    (stored(one(shape=(2.0,)), bytes(8)), "floating point `2.0`, expected usize"),
    (stored(one(shape=(True, 2)), bytes(8)), "boolean `true`, expected usize"),
    (stored(one(shape=(1,) * 17 + (2,)), bytes(8)), "more than 16 axes"),
    (
      stored({f"{i}": dict(dtype="U8", shape=[0], data_offsets=[0, 0]) for i in range(100_001)}),
      "100001 arrays",
    ),
    (stored(one(shape=(2**62, 2**62)), bytes(8)), "overflow computing buffer size"),
    (stored(one(shape=(0, 2**62, 2**62), offsets=(0, 0))), "more than can be indexed"),
    (stored(one(shape=(2**40,)), bytes(8)), "invalid shape, data type, or offset"),
    (stored(one(shape=(2**40,), offsets=(0, 2**42)), bytes(8)), "not fully covered"),
    (stored(one(offsets=(8, 0)), bytes(8)), "invalid offset for tensor `a`"),
    (stored(one(offsets=(0,)), bytes(8)), "invalid length 1, expected a tuple of size 2"),
    (stored(one(offsets=(0, 8, 9)), bytes(8)), "invalid length 3, expected 2"),
    (stored(one(offsets=("0", "8")), bytes(8)), 'invalid type: string "0", expected usize'),
    (stored(one(offsets=(4, 12)), bytes(12)), "invalid offset for tensor `a`"),
    (stored(one() | one(name="b", offsets=(4, 12)), bytes(12)), "invalid offset for tensor `b`"),
    (stored(one() | one(name="b"), bytes(8)), "invalid offset for tensor"),
    (stored(one(), bytes(7)), "not fully covered"),
    (stored(one(), bytes(9)), "not fully covered"),
    (stored(one("BOOL", (2,), (0, 2)), b"\x01\x02"), "neither 0 nor 1"),
  ],
)
def test_what_breaks_the_format_is_reported(path, content, reason):
  assert reason in refused(path, content)


@pytest.mark.parametrize(
  "content, reason",
  [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    (b"<!doctype html><html></html>", "it is a web page: download the file itself"),
    (b'{"weight_map": {"a": "x.safetensors"}}', "it is a JSON text: give its folder, or the file of arrays"),
    (stored(one("F5"), bytes(8)), "pip install --upgrade safetensors"),
    (struct.pack("<Q", 10**8 + 1) + b"{}", "compare its size with the source's"),
    (struct.pack("<Q", 10**8 + 1) + bytes(10**8 + 1), "a header may have 100 MB: write the arrays in parts"),
    (stored(one(), bytes(7)), "compare its size with the source's: if they differ, download it again"),
    (stored(one(shape=(1,) * 17 + (2,)), bytes(8)), "write the file without it"),
  ],
)
def test_the_advice_is_true_of_the_fault(path, content, reason):
  """A new download is advised only where the file may differ from its source."""
  message = refused(path, content)
  assert reason in message and ("download it again" in message) == ("compare its size" in message)


def test_what_is_no_file_is_reported(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  for name, reason in (("missing", "No such file"), (".", "directory"), ("pipe", "not a regular file")):
    with pytest.raises(UserError, match=reason):
      safetensors.read(tmp_path / name)


def sound() -> bytes:
  header = (
    {"__metadata__": {"format": "pt"}}
    | one()
    | one("I64", (1, 2), (8, 24), "b")
    | one("BOOL", (3,), (24, 27), "c")
  )
  return stored(header, bytes(27))


def read_or_refuse(path) -> int:
  """How many arrays a file has, touching every byte of them; 0 if it is refused."""
  try:
    actual = safetensors.read(path)
  except UserError as error:
    assert str(error).isprintable()
    return 0
  assert sum(value.nbytes for value in actual.values()) <= path.stat().st_size
  for value in actual.values():
    value.sum()
  return len(actual)


def test_no_damage_shows_a_traceback_or_costs_memory(path):
  """Every truncation, 800 random changes of bytes, and every number of the header made absurd."""
  whole, rng = sound(), np.random.default_rng(1)
  cases = [whole[:n] for n in range(len(whole))] + [whole + b"\0"]
  for _ in range(800):
    changed = bytearray(whole)
    for place in rng.integers(0, len(whole) - 27, rng.integers(1, 4)):
      changed[place] = rng.integers(256)
    cases.append(bytes(changed))
  text = whole[8:-27].decode()
  for number in ("[2]", "[0, 8]", "[8, 24]", "[24, 27]"):
    for absurd in (
      "[99999999999999999999999]",
      "[-1, 8]",
      "[0, 9223372036854775807]",
      "[[0], 8]",
      "null",
      "{}",
      "[1e3, 1e9]",
    ):
      cases.append(stored(text.replace(number, absurd).encode(), whole[-27:]))
  tracemalloc.start()
  accepted = 0
  for case in cases:
    path.write_bytes(case)
    accepted += read_or_refuse(path) > 0
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  path.write_bytes(whole)
  assert read_or_refuse(path) == 3
  assert peak < 4e6
  assert accepted < 0.2 * len(cases), "a changed name or text of the metadata is no fault"


@pytest.mark.parametrize(
  "tensors",
  [
    {"a": np.zeros(2, complex)},
    {"a": np.array(["x"])},
    {"a": np.array([None])},
    {"a\n": np.zeros(2)},
    {"": np.zeros(2)},
    {"__metadata__": np.zeros(2)},
  ],
)
def test_what_the_format_does_not_have_is_not_written(path, tensors):
  with pytest.raises(ValueError, match="cannot be written"):
    safetensors.write(path, tensors)
  assert not path.exists()


def test_a_failed_write_leaves_what_was_there(path, tmp_path):
  safetensors.write(path, {"a": np.zeros(2)})
  for place in (tmp_path / "none" / "x", path / "x", tmp_path):
    with pytest.raises(UserError, match="cannot write"):
      safetensors.write(place, TENSORS)
  assert os.listdir(tmp_path) == [path.name] and safetensors.read(path)["a"].tolist() == [0, 0]


def test_arrays_are_mapped_one_by_one(path):
  safetensors.write(path, TENSORS)
  actual = safetensors.tensors(path)
  assert actual.keys() == TENSORS.keys() and len(actual) == len(TENSORS)
  for name, value in TENSORS.items():
    assert actual[name].tobytes() == np.asarray(value).tobytes() and actual[name].dtype == value.dtype
    assert actual.entry(name).shape == np.shape(value)
  held = actual["conv/kernel"]
  path.write_bytes(path.read_bytes()[:-1])
  cut = max(TENSORS, key=lambda name: actual.entry(name).end)
  with pytest.raises(UserError, match="cut short since it was opened"):
    actual[cut]
  assert held.sum() == TENSORS["conv/kernel"].sum() or cut == "conv/kernel"


def test_the_line_for_a_pickle_unties_tensors_that_share_memory():
  """Else save_file refuses them, such as the lpips package's heads, which it holds under two names."""
  line = safetensors.pickle_message(Path("model.ckpt")).partition('python -c "')[2]
  compile(line.removesuffix('"'), "line", "exec")
  assert "k: v.clone().contiguous() for k, v in" in line


@pytest.mark.parametrize(
  "content",
  [b"PK\x03\x04" + bytes(100), b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x04\x95" + bytes(20)],
)
def test_a_pickle_is_reported_with_the_way_around_it(tmp_path, content):
  path = tmp_path / "model.ckpt"
  path.write_bytes(content)
  for read in (safetensors.read, safetensors.tensors, safetensors.read_header):
    with pytest.raises(
      UserError, match=r"is a pickle, .* torch.load\('model.ckpt', weights_only=True\); .*; s.save_file"
    ) as error:
      read(path)
    assert str(error.value).isprintable() and "'model.safetensors')" in str(error.value)


def test_a_header_that_begins_like_a_pickle_is_read(path):
  padded = json.dumps(one()).encode()
  path.write_bytes(stored(padded + b" " * (0x280 - len(padded)), bytes(8)))  # 0x280 is 80 02
  assert safetensors.tensors(path)["a"].shape == (2,)


HOSTILE = """
from pathlib import Path
import sys
from jldm.core.errors import UserError
from jldm.interop import msgpack, safetensors
held = lambda name: int(Path("/proc/self/status").read_text().split(name)[1].split()[1]) * 1024
files = [Path(name) for name in sys.argv[1:]]
def told(file):
  try:
    found = (msgpack if file.suffix == ".msgpack" else safetensors).tensors(file)
    return sum(found[name].nbytes for name in found)
  except UserError as error:
    return str(error)
told(files[0])  # what is imported
Path("/proc/self/clear_refs").write_text("5")
before = held("VmRSS")
read = [told(file) for file in files]
assert all(isinstance(one, str) for one in read), read
print(held("VmHWM") - before)
"""


def test_what_a_file_announces_is_not_allocated(tmp_path):
  """The memory of a process, in which numpy's and a file's mapped pages count, over files that
  announce up to 2^60 values.
  """
  value = lambda shape, end: {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
  long = b'{"' + b"a" * 2**21
  contents = {
    "values": stored({"a": value([2**60], 2**62)}, bytes(8)),
    "sides": stored({"a": value([2**15] * 4, 2**62)}, bytes(8)),
    "empty": stored({"a": value([2**60, 0, 2**60], 0)}, b""),
    "header": struct.pack("<Q", 2**60) + b"{}",
    "unclosed": stored(long, b""),
    "nested": stored(b'{"a":' + b"[" * 2**20, b""),
    "digits": stored(b'{"a":' + b"9" * 2**20, b""),
    "names": stored({f"{i}": value([2**60], 2**62) for i in range(20_000)}, b""),
  }
  files = [tmp_path / f"{name}.safetensors" for name in contents]
  for file, content in zip(files, contents.values()):
    file.write_bytes(content)
  for kind, length in (
    ("array", b"\xdd"),
    ("map", b"\xdf"),
    ("bytes", b"\xc6"),
    ("extension", b"\xc9"),
    ("text", b"\xdb"),
  ):
    files.append(tmp_path / f"{kind}.msgpack")
    files[-1].write_bytes(b"\x81\xa1a" + length + b"\xff\xff\xff\xff" + b"\x01" * 40)
  for kind, head in (("maps", b"\xdf\x00\x00\x10\x00\xa1a"), ("lists", b"\xdd\x00\x08\x00\x00")):
    files.append(tmp_path / f"{kind}.msgpack")  # nested: each level alone would be within the limits
    files[-1].write_bytes(head * 1000 + bytes(2**20))
  run = subprocess.run(
    [sys.executable, "-c", HOSTILE, *map(str, files)], capture_output=True, text=True, cwd=ROOT
  )
  assert run.returncode == 0, run.stderr[-2000:]
  assert int(run.stdout) < 64 * 2**20


NUMBERS = st.one_of(
  st.integers(0, 40), st.integers(-(2**70), 2**70), st.just(2**63 - 1), st.none(), st.floats()
)
ENTRIES = st.fixed_dictionaries(
  {
    "dtype": st.sampled_from([*safetensors.DTYPES, "F7", "", 3]),
    "shape": st.lists(NUMBERS, max_size=4),
    "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
  }
)
HEADERS = st.dictionaries(st.text(max_size=6), st.one_of(ENTRIES, NUMBERS, st.text(max_size=3)), max_size=4)
CONTENTS = st.one_of(
  st.binary(max_size=200),
  st.builds(stored, st.binary(max_size=60), st.binary(max_size=20)),
  st.builds(stored, HEADERS, st.binary(max_size=60)),
  st.builds(
    lambda at, new: sound()[:at] + new + sound()[at + len(new) :], st.integers(0, 200), st.binary(max_size=8)
  ),
  st.builds(
    lambda length, rest: struct.pack("<Q", length) + rest, st.integers(0, 2**64 - 1), st.binary(max_size=60)
  ),
)


@settings(
  max_examples=300,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(CONTENTS)
def test_whatever_a_file_holds_our_errors_alone_are_raised(path, content):
  path.write_bytes(content)
  tracemalloc.start()
  try:
    actual = safetensors.tensors(path)
    assert sum(actual[name].nbytes for name in actual) <= len(content)
  except UserError as error:
    assert str(error).isprintable() and str(path) in str(error)
  finally:
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
  assert peak < 1e6


@settings(
  max_examples=100,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
  st.one_of(
    st.binary(max_size=100),
    st.builds(
      lambda map: json.dumps({"weight_map": map}).encode(),
      st.one_of(
        NUMBERS,
        st.dictionaries(
          st.text(max_size=4), st.one_of(NUMBERS, st.text(max_size=20), st.just("x.safetensors"))
        ),
      ),
    ),
  )
)
def test_whatever_an_index_holds_our_errors_alone_are_raised(path, content):
  safetensors.write(path, {"a": np.zeros(2)})
  index = path.with_name("x" + safetensors.INDEX)
  index.write_bytes(content)
  try:
    assert list(safetensors.tensors(index)) == ["a"]
  except UserError as error:
    assert str(error).isprintable()


def test_a_header_of_megabytes_is_read(path):
  """As long as the format allows: 3 MB, in one text of its metadata and in many names."""
  safetensors.write(path, TENSORS, {"text": "a" * 3 * 2**20})
  assert len(safetensors.read_header(path).metadata["text"]) == 3 * 2**20
  names = [f"{i:06}" + "n" * 100 for i in range(20_000)]
  entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
  path.write_bytes(stored(dict.fromkeys(names, entry)))
  assert path.stat().st_size > 3 * 2**20 and list(safetensors.tensors(path)) == names


@pytest.mark.parametrize("dtype", LATER)
def test_a_later_dtype_is_refused_only_if_it_is_asked_for(path, dtype):
  size = LATER[dtype]  # bytes of 8 values
  header = one(dtype, (8,), (0, size), "odd") | one(offsets=(size, size + 8))
  path.write_bytes(stored(header, bytes(size) + struct.pack("<2f", 1.5, -2.0)))
  actual = safetensors.tensors(path)
  assert actual["a"].tolist() == [1.5, -2] and actual.entry("odd").shape == (8,)
  for ask in (lambda: actual["odd"], lambda: safetensors.read(path)):
    with pytest.raises(UserError, match=f"'odd' of .* has dtype {dtype}, none of BOOL .* F64") as error:
      ask()
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "bool", "uint64"])
def test_the_package_reads_what_is_written(path, kind):
  """Its header, and the bytes at the offsets that it tells."""
  value = np.asarray([0, 1, 1, 0], kind)
  safetensors.write(path, {"b": value, "a": np.zeros(3)}, {"z": "1", "a": "2", "m": "3"})
  with published.safe_open(path, framework="np") as file:
    assert sorted(file.keys()) == ["a", "b"] and file.metadata() == {"z": "1", "a": "2", "m": "3"}
  actual = dict(published.deserialize(path.read_bytes()))
  assert bytes(actual["b"]["data"]) == value.tobytes() and actual["b"]["shape"] == [4]


def test_metadata_do_not_change_the_bytes_by_their_order(path):
  """The package writes them in a random order."""
  written = set()
  for names in ("abcdefgh", "hgfedcba") * 4:
    safetensors.write(path, TENSORS, {name: "größe\n\x7f\u2028" for name in names})
    written.add(path.read_bytes())
    assert safetensors.read_header(path).metadata == {name: "größe\n\x7f\u2028" for name in names}
  assert len(written) == 1
