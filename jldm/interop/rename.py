"""Converts published parameters to ours and back, by one table per model.

A table maps our layers to theirs, coarse to fine, and ends in axes:

  CONV = (("kernel", "weight", Axes("hwio", "oihw")), ("bias", "bias", Axes("o", "o")))
  RESNET = (("norm1", "norm1", NORM), ("conv1", "conv1", CONV), …)
  MODEL = (("encoder/in", "encoder.conv_in", CONV), ("encoder/level0_resnet0",
  "encoder.down_blocks.0.resnets.0", RESNET), …)

The names of a path are joined by "/" in our tree and by "." in theirs; "" adds nothing.  If theirs is a
tuple, such as ("to_q", "to_k", "to_v"), our array is the concatenation of theirs along our last axis.
If theirs has a "*", as in ("blocks", "blocks.*", BLOCK), our arrays are stacks of theirs along our
first axis, and "*" counts along it.  The table must have all arrays of our tree.  It may have more,
such as the shortcut of a block without one; these exist on neither side.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.trees import named_leaves

MOST_NAMES = 3  # in a message
ALIGNMENT = 64  # bytes
PART = 2**20  # values that are looked at together
DTYPES = ("float32", "bfloat16")  # of parameters in memory
OWN_CONFIG = "give the config.json that belongs to it"


Place = Callable[[str, np.ndarray], Any]


def on_default_device(name: str, value: np.ndarray) -> jax.Array:
  """An array on the default device, without a copy if that is the CPU."""
  del name
  return jax.device_put(value)


def aligned_array(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """An empty array as JAX has its own on a CPU: it takes what is aligned like this as it is."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  whole = np.empty(size + ALIGNMENT, np.uint8)
  start = -whole.ctypes.data % ALIGNMENT
  return whole[start : start + size].view(dtype).reshape(shape)


class Axes(NamedTuple):
  """The axes of one array by letter, ours and theirs; "1" is an axis of length one that we do not have."""

  ours: str
  theirs: str

  def published(self, value: np.ndarray) -> np.ndarray:
    """Ours -> theirs, a view where it can be."""
    kept = self.theirs.replace("1", "")
    moved = value.transpose([self.ours.index(axis) for axis in kept])
    return moved.reshape(self.shape(value.shape))

  def imported(self, value: np.ndarray) -> np.ndarray:
    """Theirs -> ours, a view."""
    value = value.reshape([side for side, axis in zip(value.shape, self.theirs) if axis != "1"])
    kept = self.theirs.replace("1", "")
    return value.transpose([kept.index(axis) for axis in self.ours])

  def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Of theirs, where ours has that shape."""
    return tuple(1 if axis == "1" else ours[self.ours.index(axis)] for axis in self.theirs)


def layer(kernel: Axes) -> tuple:
  """A kernel, and the bias that it may have."""
  return (("kernel", "weight", kernel), ("bias", "bias", Axes("o", "o")))


CONV = layer(Axes("hwio", "oihw"))
DENSE = layer(Axes("io", "oi"))
POINTWISE = layer(Axes("io", "oi11"))  # our dense layer, their 1x1 convolution
NORM = (("scale", "weight", Axes("c", "c")), ("bias", "bias", Axes("c", "c")))


class Leaf(NamedTuple):
  """One of our arrays: their names, joined along our last axis, and stacked along our first for a "*"."""

  theirs: tuple[str, ...]
  axes: Axes

  @property
  def stacked(self) -> bool:
    return "*" in self.theirs[0]

  def numbered(self, ours: tuple[int, ...]) -> list[tuple[str, ...]]:
    """Their names per index of our first axis; one row of them if it is no stack."""
    if not self.stacked:
      return [self.theirs]
    return [tuple(name.replace("*", str(i)) for name in self.theirs) for i in range(ours[0])]

  def names(self, ours: tuple[int, ...]) -> list[str]:
    return [name for row in self.numbered(ours) for name in row]

  def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Of each of theirs."""
    one = ours[1:] if self.stacked else ours
    return self.axes.shape((*one[:-1], one[-1] // len(self.theirs)))

  def imported(self, like: Any, read: Callable[[str], np.ndarray]) -> np.ndarray:
    """Theirs, each read by its name -> ours, in the shape and dtype of `like`, one of theirs at a time."""
    whole = aligned_array(like.shape, like.dtype)
    for block, row in zip(whole if self.stacked else whole[None], self.numbered(like.shape)):
      for part, name in zip(np.split(block, len(row), -1), row):
        part[...] = self.axes.imported(read(name))
    return whole

  def published(self, ours: np.ndarray) -> dict[str, np.ndarray]:
    """Ours -> theirs by name."""
    blocks = ours if self.stacked else ours[None]
    parts = (np.split(block, len(self.theirs), -1) for block in blocks)
    rows = zip(self.numbered(ours.shape), parts)
    return {name: self.axes.published(part) for row, each in rows for name, part in zip(row, each)}


def number_table(rows: Iterable[tuple], numbers: Iterable[Mapping[str, int]]) -> tuple:
  """A table from rows with {fields} in both names, such as ("level{level}", "blocks.{level}", CONV),
  once for all numbers.
  """
  table = {
    ours.format(**each): (theirs.format(**each), below) for each in numbers for ours, theirs, below in rows
  }
  return tuple((ours, theirs, below) for ours, (theirs, below) in table.items())


def expand_table(table: tuple, ours: str = "", theirs: tuple[str, ...] = ("",)) -> Iterator[tuple[str, Leaf]]:
  """Yields (our name, the arrays of theirs) for all arrays of a table."""
  for our, their, below in table:
    name = "/".join(filter(None, (ours, our)))
    their = (their,) if isinstance(their, str) else their
    names = tuple(".".join(filter(None, (before, after))) for before in theirs for after in their)
    yield from [(name, Leaf(names, below))] if isinstance(below, Axes) else expand_table(below, name, names)


def leaves(table: tuple, like: Any) -> dict[str, tuple[Any, Leaf]]:
  """The arrays (or shapes) of our tree by name, each with its Leaf; KeyError for one that the table lacks."""
  known = dict(expand_table(table))
  return {name: (leaf, known[name]) for name, leaf in named_leaves(like).items()}


def published_shapes(table: tuple, like: Any) -> dict[str, tuple[int, ...]]:
  """The shapes of their tensors by name, from our tree of arrays or shapes."""
  return {
    name: leaf.shape(ours.shape)
    for ours, leaf in leaves(table, like).values()
    for name in leaf.names(ours.shape)
  }


def import_tensors(
  table: tuple,
  like: Any,
  tensors: Mapping[str, Any],
  leave_out: str = "",
  allow_nan: bool = False,
  where: str = "the file",
  remedy: str = OWN_CONFIG,
  place: Place = on_default_device,
) -> Any:
  """Converts their tensors to our tree, in the structure, shapes and dtypes of `like`, one tensor at a time.

  The largest are read first, so that what a tensor takes while it is read adds to little.

  leave_out: a regular expression for the names of other things in the file.   where: what errors call the
  source.   remedy: what to do if it does not fit.   place: puts an array of ours, by its name, on devices.

  Raises:
    UserError: tensors are missing, unknown, of a wrong shape, no floats, or (unless `allow_nan`) not finite;
      it names them.
  """
  wanted = published_shapes(table, like)
  check_tensor_names(wanted, [name for name in tensors if not re.fullmatch(leave_out, name)], where, remedy)
  for name, shape in wanted.items():
    check_tensor(name, tensors[name], shape, where, remedy)
  read = lambda name: finite_tensor(name, tensors[name], allow_nan, where).reshape(wanted[name])
  ours = leaves(table, like)
  made = {
    name: place(name, leaf.imported(one, read))
    for name, (one, leaf) in sorted(ours.items(), key=lambda item: -math.prod(item[1][0].shape))
  }
  return jax.tree.unflatten(jax.tree.structure(like), [made[name] for name in ours])


def check_dtype(dtype: str) -> None:
  """Raises a UserError unless parameters are read in a dtype of this name."""
  if dtype not in DTYPES:
    raise UserError(f"dtype={dtype!r} of parameters; expected one of {', '.join(DTYPES)}")


def in_dtype(like: Any, dtype: str) -> Any:
  """Shapes in another dtype."""
  return jax.tree.map(lambda one: jax.ShapeDtypeStruct(one.shape, dtype), like)


def check_tensor_names(
  wanted: Mapping[str, tuple[int, ...]], there: list[str], where: str, remedy: str = OWN_CONFIG
) -> None:
  """Raises a UserError unless the two have the same names."""
  shown = lambda names: (
    ", ".join(name[:80] for name in names[:MOST_NAMES]) + (" …" if len(names) > MOST_NAMES else "")
  )
  surplus = sorted(set(there) - set(wanted))
  if missing := sorted(set(wanted) - set(there)):
    others = f", and has {len(surplus)} of another: {shown(surplus)}" if surplus else ""
    raise UserError(
      f"{where} lacks {len(missing)} of {len(wanted)} tensors: {shown(missing)}{others}; "
      f"{remedy}, or a whole file"
    )
  if surplus:
    raise UserError(
      f"{where} has {len(surplus)} tensors beyond the {len(wanted)} of this network: {shown(surplus)}; "
      f"{remedy}, or a file without them"
    )


def check_tensor(name: str, value: Any, shape: tuple[int, ...], where: str, remedy: str = OWN_CONFIG) -> None:
  """Raises a UserError unless a tensor is of floats and of that shape (a dense kernel may end in 1, 1)."""
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise UserError(
      f"{name} of {where} is {value.dtype}; expected float32, float16 or bfloat16: cast it and write the "
      f"file anew"
    )
  if value.shape not in (shape, (*shape, 1, 1)):
    raise UserError(f"{name} of {where} is {list(value.shape)}, expected {list(shape)}; {remedy}")


def finite_tensor(name: str, value: np.ndarray, allow_nan: bool, where: str) -> np.ndarray:
  """One tensor; UserError unless all of it is finite in float32."""
  if not allow_nan and (bad := count_not_finite(value.reshape(-1))):
    raise UserError(
      f"{name} of {where} has {bad} values that are not finite; give another file, or accept them: "
      "--allow-nan, in Python allow_nan=True"
    )
  return value


def count_not_finite(values: np.ndarray) -> int:
  """How many of the values [N] are not finite in float32, a part at a time."""
  parts = (values[start : start + PART].astype(np.float32) for start in range(0, values.size, PART))
  return sum(part.size - np.count_nonzero(np.isfinite(part)) for part in parts)


def publish(table: tuple, tree: Any) -> dict[str, np.ndarray]:
  """Our tree -> their tensors by name, the inverse of `import_tensors`."""
  published = {}
  for ours, leaf in leaves(table, tree).values():
    published |= leaf.published(np.asarray(ours))
  return published
