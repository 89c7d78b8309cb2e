"""Arrays in safetensors files: read by memory map after everything that a header says has been
checked, written atomically.

A file is 8 bytes, the length of the header; the header, JSON padded with spaces; the data.  The
header has, a tensor,

  name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}

with offsets from the start of the data, little-endian and row-major, and perhaps {"__metadata__":
{text: text}}. Lengths are compared with the size of the file before a byte of what they describe is
read, so that what a hostile file costs is bounded by MOST_HEADER; nothing in it is ever executed.
https://github.com/huggingface/safetensors

A model in parts has an index, a JSON file {"weight_map": {name: file beside it}}.
"""

from collections.abc import Iterator, Mapping
import itertools
import json
import math
import mmap
import os
from pathlib import Path
import stat
import struct
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.files import replace_file

DTYPES = {
  name: np.dtype(scalar)
  for name, scalar in {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
  }.items()
}
MOST_HEADER = 2 * 2**20  # bytes; that of a model with 2,000 arrays has 0.3 MB
MOST_AXES = 16
MOST_BYTES = 2**62  # of an array, its empty axes left out: what numpy can index
METADATA = "__metadata__"
INDEX = ".safetensors.index.json"
MOST_INDEX = 8 * 2**20  # bytes
PICKLES = (b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(2, 6)))  # how PyTorch's files begin


class Entry(NamedTuple):
  """One array as the header has it; bytes begin to end of the data."""

  dtype: str
  shape: tuple[int, ...]
  begin: int
  end: int


class Header(NamedTuple):
  """Entries by name, the file's metadata, and where the data begin."""

  entries: dict[str, Entry]
  metadata: dict[str, str]
  start: int


class Fault(Exception):
  """What is wrong with a file."""


class Tensors(Mapping):
  """Arrays by name of one or more checked files: each is mapped when it is asked for and unmapped when
  it is let go.
  """

  def __init__(self, headers: Mapping[Path, Header]):
    self._places = {
      name: (path, found.start, one) for path, found in headers.items() for name, one in found.entries.items()
    }

  def __getitem__(self, name: str) -> np.ndarray:
    path, start, one = self._places[name]
    return opened(path, lambda file: view(file, name, start, one))

  def __iter__(self) -> Iterator[str]:
    return iter(self._places)

  def __len__(self) -> int:
    return len(self._places)

  def entry(self, name: str) -> Entry:
    """As the header has it: nothing is read."""
    return self._places[name][2]


def tensors(path: str | os.PathLike) -> Tensors:
  """The arrays of a file, or of all parts that an index (*.safetensors.index.json) names.

  Raises:
    UserError: as `read`; an index that is none, a part that is missing or does not hold what the index says.
  """
  path = Path(path)
  return Tensors(index_headers(path) if path.name.endswith(INDEX) else {path: read_header(path)})


def index_headers(path: Path) -> dict[Path, Header]:
  """The checked headers of all parts."""
  parts = opened(path, lambda file: index(file))
  headers = {}
  for part in sorted(set(parts.values())):
    if not (path.parent / part).exists():
      raise UserError(f"{str(path)!r} names the part {part!r}, which is not beside it; get it there")
    headers[path.parent / part] = read_header(path.parent / part)
    told = {name for name, where in parts.items() if where == part}
    if odd := sorted(told ^ set(headers[path.parent / part].entries)):
      raise UserError(f"{str(path)!r} and its part {part!r} disagree on {odd[0][:80]!r}; get both anew")
  return headers


def index(file: Any) -> dict[str, str]:
  """{name: part} of an index opened for reading; raises a Fault."""
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    raise Fault("it is not a regular file")
  text = file.read(MOST_INDEX + 1)
  if len(text) > MOST_INDEX:
    raise Fault(f"it is an index of more than {MOST_INDEX} bytes")
  parts = parsed(text.strip(), floats=True).get("weight_map")
  plain = lambda part: (
    isinstance(part, str) and Path(part).name == part and part.endswith(".safetensors") and part.isprintable()
  )
  if not isinstance(parts, dict) or not parts or not all(map(plain, parts.values())):
    raise Fault("it has no weight_map of names to .safetensors files beside it")
  return parts


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The arrays of a file by name, read-only views of a memory map: nothing is read before it is used.

  Raises:
    UserError: no such file, or one that breaks the format in any way.
  """
  return opened(path, lambda file: arrays(file, header(file)))


def read_header(path: str | os.PathLike) -> Header:
  """What a file holds; UserError as `read`."""
  return opened(path, header)


def opened(path: str | os.PathLike, use: Any) -> Any:
  """use(file), where every fault becomes a UserError that names the file."""
  try:
    with open(
      path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
    ) as file:  # a pipe does not block
      try:
        return use(file)
      except Fault as fault:
        broken = f"{str(path)!r} is no sound safetensors file: {fault}; get it anew"
        raise UserError(pickle_told(Path(path)) if is_pickle(file) else broken) from fault
  except OSError as error:
    raise UserError(f"cannot read {str(path)!r}: {error.strerror}; expected a .safetensors file") from error


def is_pickle(file: Any) -> bool:
  """Whether a file that is not safetensors begins as PyTorch's files do."""
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    return False
  file.seek(0)
  return file.read(8).startswith(PICKLES)


def pickle_told(path: Path) -> str:
  """What to do with a pickle, by one line for a shell that has torch."""
  line = (
    f"import torch, safetensors.torch as s; d = torch.load('{path.name}', weights_only=True); "
    f"s.save_file({{k: v.contiguous() for k, v in d.get('state_dict', d).items() if hasattr(v, 'shape')}}, "
    f"'{path.stem}.safetensors')"
  )
  return f'{str(path)!r} is a pickle, which may run code, and is not opened; convert it where torch is: python -c "{line}"'


def header(file: Any) -> Header:
  """The checked header of a file opened for reading; raises a Fault."""
  status = os.fstat(file.fileno())
  if not stat.S_ISREG(status.st_mode):
    raise Fault("it is not a regular file")
  if status.st_size < 10:
    raise Fault(f"it has {status.st_size} bytes, fewer than the shortest header")
  (length,) = struct.unpack("<Q", file.read(8))
  if length > MOST_HEADER:
    raise Fault(f"its header would have {length} bytes, more than {MOST_HEADER}")
  if length > status.st_size - 8:
    raise Fault(f"its header would have {length} bytes, and the file has {status.st_size}")
  found = parsed(file.read(length))
  metadata = found.pop(METADATA, {})
  if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
    raise Fault("its metadata are not texts by name")
  entries = {name: entry(name, value) for name, value in found.items()}
  check_cover(entries, status.st_size - 8 - length)
  return Header(entries, metadata, 8 + length)


def parsed(text: bytes, floats: bool = False) -> dict[str, Any]:
  """The JSON object of a header, where numbers are whole unless `floats`; raises a Fault."""

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
      raise Fault("its header has a name twice")
    return members

  def refuse(text: str) -> None:
    raise Fault(f"its header has the number {text[:40]}")

  try:
    if not text.startswith(b"{"):
      raise Fault("its header is no JSON object")
    return json.loads(
      text.decode(), object_pairs_hook=unique, parse_constant=refuse, parse_float=float if floats else refuse
    )
  except (
    ValueError,
    RecursionError,
  ) as error:  # ValueError: of JSON, of UTF-8, of numbers with thousands of digits
    raise Fault("its header is no JSON") from error


def entry(name: str, value: Any) -> Entry:
  """One member of the header, checked by itself; raises a Fault."""
  shown = repr(name[:80])
  if not name or not name.isprintable():
    raise Fault(f"the name {shown} is empty or not printable")
  if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
    raise Fault(f"{shown} has other members than dtype, shape and data_offsets")
  dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise Fault(f"{shown} has dtype {repr(dtype)[:40]}, none of {' '.join(DTYPES)}")
  for what, numbers, most in (("shape", shape, MOST_AXES), ("data_offsets", offsets, 2)):
    if (
      not isinstance(numbers, list)
      or len(numbers) > most
      or not all(type(n) is int and 0 <= n < 2**63 for n in numbers)
    ):
      raise Fault(f"{shown} has {what} {repr(numbers)[:40]}, not up to {most} whole numbers")
  if len(offsets) != 2 or offsets[0] > offsets[1]:
    raise Fault(f"{shown} has data_offsets {offsets}, not a begin and an end")
  if math.prod(side or 1 for side in shape) * DTYPES[dtype].itemsize > MOST_BYTES:
    raise Fault(f"{shown} has shape {shape}, more than can be indexed")
  size = math.prod(shape) * DTYPES[dtype].itemsize
  if size != offsets[1] - offsets[0]:
    raise Fault(
      f"{shown} is {dtype} {shape}, {size} bytes, and its data_offsets {offsets} span {offsets[1] - offsets[0]}"
    )
  return Entry(dtype, tuple(shape), *offsets)


def check_cover(entries: dict[str, Entry], size: int) -> None:
  """Raises a Fault unless the entries lie side by side, with neither gap nor overlap, and end where
  the data end.
  """
  at = 0
  for name, one in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
    if one.begin != at:
      what = "overlaps what is before it" if one.begin < at else "leaves a gap before it"
      raise Fault(f"{name[:80]!r} begins at byte {one.begin} and {what}, which ends at {at}")
    at = one.end
  if at != size:
    raise Fault(
      f"its header describes {at} bytes of data, and it has {size}: is it cut short?"
      if at > size
      else f"its header describes {at} bytes of data, and it has {size}"
    )


def arrays(file: Any, found: Header) -> dict[str, np.ndarray]:
  """Views of the file's bytes."""
  buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  flat = lambda one: np.frombuffer(buffer, np.uint8, one.end - one.begin, found.start + one.begin)
  return {name: shaped(flat(one), name, one) for name, one in found.entries.items()}


def view(file: Any, name: str, start: int, one: Entry) -> np.ndarray:
  """One array of a file whose data begin at `start`, a view of a memory map of its own."""
  if one.begin == one.end:
    return np.empty(one.shape, DTYPES[one.dtype])
  if os.fstat(file.fileno()).st_size < start + one.end:
    raise Fault("it was cut short since it was opened")
  before = (start + one.begin) % mmap.ALLOCATIONGRANULARITY
  buffer = mmap.mmap(
    file.fileno(), before + one.end - one.begin, access=mmap.ACCESS_READ, offset=start + one.begin - before
  )
  return shaped(np.frombuffer(buffer, np.uint8, one.end - one.begin, before), name, one)


def shaped(flat: np.ndarray, name: str, one: Entry) -> np.ndarray:
  """Bytes as the array that they are; raises a Fault where a BOOL is neither 0 nor 1."""
  if one.dtype == "BOOL" and flat.size and flat.max() > 1:
    raise Fault(f"{name[:80]!r} is BOOL and has a byte that is neither 0 nor 1")
  return flat.view(DTYPES[one.dtype]).reshape(one.shape)


def write(
  path: str | os.PathLike, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
  """Writes arrays by name, whole or not at all; the same arrays and metadata give the same bytes.

  Raises:
    UserError: the file cannot be written.
    ValueError: a dtype or a name that the format does not have.
  """
  names = {dtype: name for name, dtype in DTYPES.items()}
  tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
  if unknown := [
    name
    for name, value in tensors.items()
    if value.dtype not in names or not name.isprintable() or not name or name == METADATA
  ]:
    raise ValueError(
      f"{unknown[0]!r} of {tensors[unknown[0]].dtype} cannot be written; dtypes are {' '.join(DTYPES)}"
    )
  order = sorted(
    tensors, key=lambda name: (-tensors[name].dtype.itemsize, name)
  )  # the widest first: all are aligned
  ends = list(itertools.accumulate((tensors[name].nbytes for name in order), initial=0))
  described: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
  for name, begin, end in zip(order, ends, ends[1:]):
    described[name] = {
      "dtype": names[tensors[name].dtype],
      "shape": list(tensors[name].shape),
      "data_offsets": [begin, end],
    }
  text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
  text += b" " * (-len(text) % 8)
  path = Path(path)
  try:
    with replace_file(path, make_folder=False, fsync=True) as file:
      file.write(struct.pack("<Q", len(text)) + text)
      for name in order:
        file.write(tensors[name].tobytes())
  except OSError as error:
    raise UserError(f"cannot write {str(path)!r}: {error.strerror}; choose another") from error
