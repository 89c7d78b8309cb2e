"""Arrays in the msgpack files of flax.serialization.

What flax writes of a tree of arrays is a small part of msgpack: maps from text to maps or to arrays, an
array being extension 1 with [shape, name of the dtype, bytes] in it.  Anything else is refused.

flax.serialization.msgpack_restore is the same call of the `msgpack` package without limits: nested lists
that announce a million members each are allocated before they are missed, a name that stands twice hides
the first, and any dtype is taken.  Hence the package is called here, with its limits set.
https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from collections.abc import Iterator
import math
import mmap
import os
from typing import Any

import jax.numpy as jnp
import msgpack
import numpy as np

from jldm.core.errors import MOST_REASON, UserError, printable

MOST_ARRAYS, MOST_NAMES, MOST_DEPTH, MOST_AXES, MOST_NAME = 100_000, 4_096, 16, 16, 200
ARRAY = 1  # flax's extension
DTYPES = {
  np.dtype(scalar).name: np.dtype(scalar)
  for scalar in (np.float32, np.float16, jnp.bfloat16, np.float64, np.int32)
}


class Fault(Exception):
  """What is wrong with a file."""


def tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """The arrays of a file by path, joined by "/".

  Raises:
    UserError: no such file, or one that flax has not written.
  """
  try:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
      buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except OSError as error:
    raise UserError(f"cannot read {str(path)!r}: {error.strerror}; expected a .msgpack file") from error
  except ValueError as error:  # mmap's, of an empty file
    raise UserError(broken(path, error)) from error
  try:
    return named(unpacked(buffer))
  except Exception as error:  # whatever the package raises, of whatever a file may hold
    raise UserError(broken(path, error)) from error


def broken(path: str | os.PathLike, error: Exception) -> str:
  reason = printable(str(error) or type(error).__name__, MOST_REASON)
  return (
    f"{str(path)!r} is no msgpack file of a tree that flax wrote: {reason}; "
    "compare its size with the source's"
  )


def unpacked(buffer: Any) -> Any:
  """Dicts of dicts of extensions, each length compared with a limit before anything is allocated for it."""
  return msgpack.unpackb(
    buffer,
    object_pairs_hook=unique,
    max_str_len=MOST_NAME,
    max_bin_len=0,
    max_array_len=0,
    max_map_len=min(MOST_NAMES, len(buffer) // 2),
    max_ext_len=len(buffer),
  )


def unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
  """A map, each name of which stands once and may be printed."""
  members = {}
  for name, value in pairs:
    if not isinstance(name, str) or not name or not name.isprintable():
      raise Fault(f"the name {name!r} is no text, empty or not printable")
    if name in members:
      raise Fault(f"it has {name!r} twice")
    members[name] = value
  return members


def named(tree: Any) -> dict[str, np.ndarray]:
  """{path: array} of dicts of dicts of extensions, which are let go."""
  if not isinstance(tree, dict):
    raise Fault(f"it holds {type(tree).__name__}, where flax has a map")
  arrays = {}
  for name, value in leaves(tree):
    if name in arrays or len(arrays) >= MOST_ARRAYS:
      raise Fault(f"it has {name!r} twice" if name in arrays else f"it has more than {MOST_ARRAYS} arrays")
    arrays[name] = array(name, value)
  return arrays


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
  if len(path) >= MOST_DEPTH:
    raise Fault(f"its maps are more than {MOST_DEPTH} deep")
  for name in list(tree):
    value = tree.pop(name)
    if isinstance(value, dict):
      yield from leaves(value, (*path, name))
    else:
      yield "/".join((*path, name)), value


def array(name: str, value: Any) -> np.ndarray:
  """An extension as the array that it holds, a read-only view."""
  if not isinstance(value, msgpack.ExtType):
    raise Fault(f"{name} is {type(value).__name__}, where flax has a map or an array")
  if value.code != ARRAY:
    raise Fault(f"{name} is of extension {value.code}; flax has arrays in {ARRAY}")
  limits = {"max_array_len": MOST_AXES, "max_map_len": 0, "max_ext_len": 0, "max_str_len": MOST_NAME}
  try:
    shape, dtype, data = msgpack.unpackb(value.data, **limits)
  except Exception as error:
    raise Fault(f"{name} is not [shape, dtype, bytes] ({error})") from error
  if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
    raise Fault(f"{name} has shape {str(shape)[:80]}, not a list of whole numbers")
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise Fault(f"{name} has dtype {str(dtype)[:80]}, none of {' '.join(DTYPES)}")
  if not isinstance(data, bytes):
    raise Fault(f"{name} has {type(data).__name__}, where flax has bytes")
  if math.prod(shape) * DTYPES[dtype].itemsize != len(data):
    raise Fault(f"{name} is {dtype} {shape} and has {len(data)} bytes")
  return np.frombuffer(data, DTYPES[dtype]).reshape(shape)
