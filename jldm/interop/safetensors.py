"""Arrays in safetensors files: the `safetensors` package checks the header, and what is asked for is read
by memory map.

A file is 8 bytes, the length of the header; the header, JSON padded with spaces; the data.  The
header has, per tensor,

  name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}

with offsets from the start of the data, little-endian and row-major, and perhaps {"__metadata__":
{text: text}}.  The package compares all lengths with the size of the file before anything is allocated
for them, refuses a header of more than 100 MB, and a file whose tensors overlap or leave a gap.  Three
things are done here: views of dtypes that numpy has from `ml_dtypes` alone (the package's numpy side
refuses float8), models in parts, and one line per error.
https://github.com/huggingface/safetensors

A model in parts has an index, a JSON file {"weight_map": {name: file in the same folder}}, named
….safetensors.index.json, or ….safetensors.index.fp16.json if it is of a variant.
"""

from collections.abc import Callable, Iterator, Mapping
import json
import math
import mmap
import os
from pathlib import Path
import re
import stat
import struct
from typing import Any, BinaryIO, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jldm.core.errors import MOST_REASON, UserError, printable
from jldm.core.files import replace_file

T = TypeVar("T")
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
MOST_ARRAYS, MOST_AXES = 100_000, 16  # a model with 2,000 arrays has a header of 0.3 MB
MOST_BYTES = 2**62  # of an array, its empty axes left out: what numpy can index
METADATA = "__metadata__"
INDEX = ".safetensors.index.json"
INDEX_NAME = re.compile(r".+\.safetensors\.index(\.\w+)?\.json")  # a variant's has its name in it
MOST_INDEX = 32 * 2**20  # bytes
COMPARE = (
  "compare its size with the source's: if they differ, download it again; if not, have it written anew"
)
REMEDIES = {  # what to do about a file, by what the package says of it
  r"unknown variant": "if that is a dtype, a later package may know it: pip install --upgrade safetensors",
  r"header too large": "a header may have 100 MB: write the arrays in parts, with an index",
}
TEXTS = {  # files of text that are taken for safetensors, by how they begin
  b"version https://git-lfs": "it is a pointer of git-lfs to the file: run git lfs pull in its folder",
  b"<": "it is a web page: download the file itself and not the page that shows it",
  b"{": "it is a JSON text: give its folder, or the file of arrays that belongs to it",
}
PICKLES = (b"PK\x03\x04", *(bytes((0x80, protocol)) for protocol in range(2, 6)))  # how PyTorch's files begin


class Entry(NamedTuple):
  """One array as the header has it; bytes begin to end of the data."""

  dtype: str  # the format's name, perhaps one that is not among DTYPES
  shape: tuple[int, ...]
  begin: int
  end: int


class Header(NamedTuple):
  """Entries by name, the file's metadata, and where the data begin."""

  entries: dict[str, Entry]
  metadata: dict[str, str]
  start: int


class Fault(Exception):
  """What is wrong with a file, and what to do about it."""

  def __init__(self, what: str, remedy: str = COMPARE):
    super().__init__(what)
    self.remedy = remedy


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
  """The arrays of a file, or of all parts that an index names.

  Raises:
    UserError: as `read`; an index that is none, a part that is missing or does not hold what the index says.
  """
  path = Path(path)
  return Tensors(index_headers(path) if INDEX_NAME.fullmatch(path.name) else {path: read_header(path)})


def index_headers(path: Path) -> dict[Path, Header]:
  """The checked headers of all parts."""
  parts = opened(path, lambda file: index(file))
  headers = {}
  for part in sorted(set(parts.values())):
    if not (path.parent / part).exists():
      raise UserError(f"{str(path)!r} names the part {part!r}, which is not beside it; get it there")
    headers[path.parent / part] = read_header(path.parent / part)
    named = {name for name, where in parts.items() if where == part}
    if odd := sorted(named ^ set(headers[path.parent / part].entries)):
      raise UserError(
        f"{str(path)!r} and its part {part!r} disagree on {odd[0][:80]!r}; take both from one source"
      )
  return headers


def index(file: Any) -> dict[str, str]:
  """{name: part} of an index opened for reading; raises a Fault."""
  check_regular(file)
  text = file.read(MOST_INDEX + 1)
  if len(text) > MOST_INDEX:
    raise Fault(f"it is an index of more than {MOST_INDEX} bytes", "see whether it is an index at all")
  parts = parsed(text.strip()).get("weight_map")
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


def opened(path: str | os.PathLike, use: Callable[[BinaryIO], T]) -> T:
  """use(file); every fault becomes a UserError that names the file."""
  # Without O_NONBLOCK, opening a pipe would wait for somebody who writes to it.
  without_blocking = lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
  try:
    with open(path, "rb", opener=without_blocking) as file:
      try:
        return use(file)
      except Fault as fault:
        raise UserError(fault_message(Path(path), file, fault)) from fault
  except OSError as error:
    raise UserError(f"cannot read {str(path)!r}: {error.strerror}; expected a .safetensors file") from error


def check_regular(file: BinaryIO) -> None:
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    raise Fault("it is not a regular file", "give a file")


def fault_message(path: Path, file: BinaryIO, fault: Fault) -> str:
  """What is wrong with a file, and what to do about it: by how the file begins, if it is of another kind."""
  details, remedy = os.fstat(file.fileno()), fault.remedy
  if stat.S_ISREG(details.st_mode):
    file.seek(0)
    beginning = file.read(64)
    if beginning.startswith(PICKLES):
      return pickle_message(path)
    if not INDEX_NAME.fullmatch(path.name):
      remedy = remedy_of(beginning, details.st_size, remedy)
  return f"{str(path)!r}, of {details.st_size} bytes, is no sound safetensors file: {fault}; {remedy}"


def remedy_of(beginning: bytes, size: int, otherwise: str) -> str:
  """What to do about a file of another kind, or one without its end, by how it begins."""
  is_text = all(32 <= byte < 127 or byte in b"\t\r\n" for byte in beginning)
  kinds = [remedy for text, remedy in TEXTS.items() if is_text and beginning.lstrip().startswith(text)]
  if kinds:
    return kinds[0]
  is_cut = int.from_bytes(beginning[:8], "little") > size - 8
  return COMPARE if is_cut else otherwise


def refuse_pickles(folder: Path) -> None:
  """Raises a UserError with `pickle_message` if a folder has a pickle."""
  for path in sorted(folder.iterdir()):
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt") and path.is_file():
      raise UserError(pickle_message(path))


def pickle_message(path: Path) -> str:
  """What to do with a pickle, by one line for a shell that has torch."""
  line = (
    f"import torch, safetensors.torch as s; d = torch.load('{path.name}', weights_only=True); "
    "d = d.get('ema', d.get('state_dict', d)); s.save_file({k: v.clone().contiguous() for k, v in d.items() "
    f"if hasattr(v, 'shape')}}, '{path.stem}.safetensors')"
  )
  reason = f"{str(path)!r} is a pickle, which may run code, and is not opened; convert it where torch is"
  return f'{reason}: python -c "{line}"'


def header(file: BinaryIO) -> Header:
  """The header of a file opened for reading, checked by the package; raises a Fault."""
  check_regular(file)
  try:
    with safe_open(file.name, framework="np") as checked:
      count, metadata = len(checked.offset_keys()), checked.metadata() or {}
  except Exception as error:  # whatever the package raises, of whatever a file may hold
    what = printable(str(error).removeprefix("Error while deserializing header: "), MOST_REASON)
    remedies = (remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, what))
    raise Fault(what, next(remedies, COMPARE)) from error
  if count > MOST_ARRAYS:
    raise Fault(f"it has {count} arrays, more than {MOST_ARRAYS}", "write them in parts, with an index")
  found, start = described(file)
  found.pop(METADATA, None)
  return Header({name: entry(name, value) for name, value in found.items()}, metadata, start)


def described(file: BinaryIO) -> tuple[dict[str, Any], int]:
  """(the header's JSON, where the data begin) of a file whose header the package has checked."""
  file.seek(0)
  (length,) = struct.unpack("<Q", file.read(8))
  return parsed(file.read(length)), 8 + length


def parsed(text: bytes) -> dict[str, Any]:
  """A JSON object in which no name stands twice, which the package does not check; raises a Fault."""

  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
      raise Fault("its header has a name twice")
    return members

  try:
    if not text.startswith(b"{"):
      raise Fault("it has no JSON object where the format has one")
    return json.loads(text.decode(), object_pairs_hook=unique)
  except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of numbers with thousands of digits
    raise Fault("it has no JSON where the format has it") from error


def entry(name: str, value: dict[str, Any]) -> Entry:
  """One member of a checked header; raises a Fault for what the package accepts and we do not."""
  if not name or not name.isprintable():
    raise Fault(f"the name {name[:80]!r} is empty or not printable")
  if set(value) != {"dtype", "shape", "data_offsets"}:
    raise Fault(f"{name[:80]!r} has other members than dtype, shape and data_offsets")
  dtype, shape = value["dtype"], value["shape"]
  if len(shape) > MOST_AXES:
    raise Fault(
      f"{name[:80]!r} has shape {str(shape)[:40]}, more than {MOST_AXES} axes", "write the file without it"
    )
  widest = DTYPES[dtype].itemsize if dtype in DTYPES else 8
  if math.prod(side or 1 for side in shape) * widest > MOST_BYTES:
    raise Fault(f"{name[:80]!r} has shape {shape}, more than can be indexed")
  return Entry(dtype, tuple(shape), *value["data_offsets"])


def arrays(file: Any, found: Header) -> dict[str, np.ndarray]:
  """Views of the file's bytes."""
  for name, one in found.entries.items():
    dtype_of(file, name, one)
  buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  flat = lambda one: np.frombuffer(buffer, np.uint8, one.end - one.begin, found.start + one.begin)
  return {name: shaped(flat(one), name, one) for name, one in found.entries.items()}


def dtype_of(file: BinaryIO, name: str, one: Entry) -> np.dtype:
  """The dtype of an array that is asked for; UserError, not a Fault: the file is sound."""
  if one.dtype not in DTYPES:
    legal = " ".join(DTYPES)
    raise UserError(
      f"{name[:80]!r} of {file.name!r} has dtype {one.dtype}, none of {legal}; give a file that has it "
      "in one of these"
    )
  return DTYPES[one.dtype]


def view(file: Any, name: str, start: int, one: Entry) -> np.ndarray:
  """One array of a file whose data begin at `start`, a view of a memory map of its own."""
  dtype = dtype_of(file, name, one)
  if one.begin == one.end:
    return np.empty(one.shape, dtype)
  if os.fstat(file.fileno()).st_size < start + one.end:
    raise Fault("it was cut short since it was opened", "run this again once the file is whole")
  before = (start + one.begin) % mmap.ALLOCATIONGRANULARITY
  buffer = mmap.mmap(
    file.fileno(), before + one.end - one.begin, access=mmap.ACCESS_READ, offset=start + one.begin - before
  )
  return shaped(np.frombuffer(buffer, np.uint8, one.end - one.begin, before), name, one)


def shaped(flat: np.ndarray, name: str, one: Entry) -> np.ndarray:
  """Bytes as the array that they are; raises a Fault if a BOOL is neither 0 nor 1."""
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
  tensors = {name: np.asarray(value, order="C") for name, value in tensors.items()}
  for name, value in tensors.items():
    if value.dtype not in DTYPES.values() or not name.isprintable() or not name or name == METADATA:
      raise ValueError(f"{name!r} of {value.dtype} cannot be written; dtypes are {' '.join(DTYPES)}")
  path = Path(path)
  try:
    with replace_file(path, make_folder=False) as file:
      save_file(tensors, file.name, dict(metadata) if metadata else None)
      with open(file.name, "r+b") as saved:  # the package has put another file in its place
        sort_metadata(saved)
        os.fsync(saved.fileno())
  except (OSError, SafetensorError) as error:
    reason = error.strerror if isinstance(error, OSError) else printable(str(error), MOST_REASON)
    raise UserError(f"cannot write {str(path)!r}: {reason}; choose another") from error


def sort_metadata(file: BinaryIO) -> None:
  """Puts a file's metadata in the order of their names: the package writes them in a random one."""
  found, start = described(file)
  if METADATA in found:
    found[METADATA] = dict(sorted(found[METADATA].items()))
    text = json.dumps(found, separators=(",", ":"), ensure_ascii=False).encode()
    file.seek(8)
    file.write(text.ljust(start - 8))
