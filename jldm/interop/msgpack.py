"""Arrays in the msgpack files of flax.serialization, read by memory map after every length has been checked.

What flax writes of a tree of arrays is a small part of msgpack: maps from text to maps or to
arrays, an array being extension 1 with [shape, name of the dtype, bytes] in it.  Anything else is
refused; nothing is executed, and what a hostile file costs is bounded by MOST_ARRAYS.
https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from collections.abc import Callable, Iterator, Mapping
import math
import mmap
import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError

MOST_ARRAYS, MOST_DEPTH, MOST_AXES, MOST_NAME = 100_000, 16, 16, 200
ARRAY = 1  # flax's extension
DTYPES = {
  np.dtype(scalar).name: np.dtype(scalar)
  for scalar in (np.float32, np.float16, jnp.bfloat16, np.float64, np.int32)
}
FIXED = {  # first bytes that hold a length or a number too: kind, the first of them, how many
  "int": (0x00, 128),
  "map": (0x80, 16),
  "list": (0x90, 16),
  "text": (0xA0, 32),
}
SIZED = {  # first bytes, and in how many bytes the length or the number is that follows
  "bytes": {0xC4: 1, 0xC5: 2, 0xC6: 4},
  "extension": {0xC7: 1, 0xC8: 2, 0xC9: 4},
  "int": {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8},
  "text": {0xD9: 1, 0xDA: 2, 0xDB: 4},
  "list": {0xDC: 2, 0xDD: 4},
  "map": {0xDE: 2, 0xDF: 4},
}
HEADS = {first + n: (kind, 0, n) for kind, (first, count) in FIXED.items() for n in range(count)}
HEADS |= {first: (kind, size, 0) for kind, sizes in SIZED.items() for first, size in sizes.items()}
HEADS |= {0xD4 + n: ("extension", 0, 2**n) for n in range(5)}


class Fault(Exception):
  """What is wrong with a file."""


class Reader:
  """A place in a buffer; every step is checked against its end."""

  def __init__(self, buffer: Any):
    self.buffer, self.at, self.end = buffer, 0, len(buffer)

  def take(self, size: int) -> int:
    """The place of the next `size` bytes, which are passed."""
    if size > self.end - self.at:
      raise Fault(f"it ends within what begins at byte {self.at}: is it cut short?")
    self.at += size
    return self.at - size

  def head(self, *wanted: str) -> tuple[str, int]:
    """(kind, length or number) of what is next."""
    at = self.take(1)
    kind, size, number = HEADS.get(self.buffer[at], ("other", 0, 0))
    if kind not in wanted:
      raise Fault(f"byte {at} begins something of kind {kind}, where flax has {' or '.join(wanted)}")
    if size:
      at = self.take(size)
      number = int.from_bytes(self.buffer[at : at + size], "big")
    return kind, number

  def text(self) -> str:
    _, size = self.head("text")
    at = self.take(size)
    try:
      text = bytes(self.buffer[at : at + min(size, MOST_NAME)]).decode()
    except UnicodeDecodeError as error:
      raise Fault(f"the text at byte {at} is no UTF-8") from error
    if not text or size > MOST_NAME or not text.isprintable():
      raise Fault(f"the text at byte {at} is empty, not printable, or longer than {MOST_NAME} bytes")
    return text

  def arrays(self, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Callable[[], np.ndarray]]]:
    """(path, how to view it) of all arrays of the map or the array that is next."""
    kind, size = self.head("map", "extension") if path else self.head("map")
    if kind == "extension":
      yield path, self.array("/".join(path), size)
      return
    if len(path) >= MOST_DEPTH:
      raise Fault(f"its maps are more than {MOST_DEPTH} deep")
    for _ in range(size):
      yield from self.arrays((*path, self.text()))

  def array(self, name: str, size: int) -> Callable[[], np.ndarray]:
    """An extension's type and content."""
    end = self.at + 1 + size
    if (kind := self.buffer[self.take(1)]) != ARRAY:
      raise Fault(f"{name} is of extension {kind}; flax has arrays in {ARRAY}")
    if self.head("list")[1] != 3 or (axes := self.head("list")[1]) > MOST_AXES:
      raise Fault(f"{name} is not [shape, dtype, bytes]")
    shape = tuple(self.head("int")[1] for _ in range(axes))
    dtype = self.text()
    if dtype not in DTYPES:
      raise Fault(f"{name} has dtype {dtype}, none of {' '.join(DTYPES)}")
    length = self.head("bytes")[1]
    at = self.take(length)
    if math.prod(shape) * DTYPES[dtype].itemsize != length or self.at != end:
      raise Fault(f"{name} is {dtype} {list(shape)} and has {length} bytes")
    return lambda: np.frombuffer(self.buffer, np.uint8, length, at).view(DTYPES[dtype]).reshape(shape)


class Tensors(Mapping):
  """Arrays by path, joined by "/": views, made when they are asked for."""

  def __init__(self, views: dict[str, Callable[[], np.ndarray]]):
    self._views = views

  def __getitem__(self, name: str) -> np.ndarray:
    return self._views[name]()

  def __iter__(self) -> Iterator[str]:
    return iter(self._views)

  def __len__(self) -> int:
    return len(self._views)


def tensors(path: str | os.PathLike) -> Tensors:
  """The arrays of a file.

  Raises:
    UserError: no such file, or one that flax has not written.
  """
  try:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
      buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reader, views = Reader(buffer), {}
    for names, view in reader.arrays():
      name = "/".join(names)
      if name in views or len(views) >= MOST_ARRAYS:
        raise Fault(f"it has {name!r} twice" if name in views else f"it has more than {MOST_ARRAYS} arrays")
      views[name] = view
    if reader.at != reader.end:
      raise Fault(f"it goes on after byte {reader.at}, where its tree ends")
    return Tensors(views)
  except OSError as error:
    raise UserError(f"cannot read {str(path)!r}: {error.strerror}; expected a .msgpack file") from error
  except (Fault, ValueError) as fault:  # ValueError: mmap's, of an empty file
    raise UserError(
      f"{str(path)!r} is no msgpack file of a tree that flax wrote: {fault}; get it anew"
    ) from fault
