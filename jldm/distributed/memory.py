"""What a computation needs of memory at least, from shapes before it is allocated, and what there is.

A lower bound refuses only what cannot fit: a compiled program needs more.
"""

from collections.abc import Callable, Iterator
import math
from pathlib import Path
import resource
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jldm.core.errors import UserError

UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
MATERIALISED = ("conv_general_dilated", "dot_general")  # operations whose operands and result are in memory


class Memory(NamedTuple):
  """Memory in bytes of one device; `shared` if it is the host's, which all its devices are parts of."""

  size: float
  shared: bool

  def __str__(self) -> str:
    return f"{bytes_text(self.size)} {'free' if self.shared else 'on the device'}"


def bytes_text(count: float) -> str:
  """ "1.5 GB"."""
  power = min(int(math.log10(max(count, 1)) // 3), len(UNITS) - 1)
  return f"{count / 1000**power:.3g} {UNITS[power]}" if power else f"{int(count)} bytes"


def available_memory() -> Memory:
  """The memory of a device if its backend tells it, else what is free on the host."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if "bytes_limit" in stats:
    return Memory(stats["bytes_limit"], shared=False)
  return Memory(host_memory(), shared=True)


def host_memory() -> float:
  """The bytes that this process may still take: free memory and swap, within its limits."""
  limits = [math.inf, resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_DATA)[0]]
  sizes = [limit for limit in limits if limit != resource.RLIM_INFINITY]
  meminfo = Path("/proc/meminfo")
  if meminfo.exists():
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    sizes.append(sum(1024 * int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree")))
  return min(sizes)


def tree_bytes(tree: Any) -> int:
  """The bytes of all arrays of a tree, which may be shapes."""
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def largest_operation(function: Callable, *shapes: Any) -> int:
  """The bytes of the operands and the result of the largest convolution or product of a function.

  The function is traced with shapes; nothing is allocated.
  """
  return max(operation_bytes(jax.make_jaxpr(function)(*shapes).jaxpr), default=0)


def operation_bytes(jaxpr: Jaxpr) -> Iterator[int]:
  """Of each of MATERIALISED, in a program and in all that it calls."""
  for equation in jaxpr.eqns:
    if equation.primitive.name in MATERIALISED:
      yield tree_bytes([each.aval for each in (*equation.invars, *equation.outvars)])
    for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_program):
      if is_program(value):
        yield from operation_bytes(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


def is_program(value: Any) -> bool:
  return isinstance(value, (Jaxpr, ClosedJaxpr))


def check_memory(what: str, needed: float, remedy: str, there: Memory | None = None) -> None:
  """Raises a UserError if `what` needs more bytes than there are; by default those of `available_memory`."""
  there = available_memory() if there is None else there
  if needed > there.size:
    raise UserError(f"{what} needs at least {bytes_text(needed)} of memory, and there are {there}; {remedy}")
