"""Devices: how many, which mesh, and where arrays live on it.

A mesh has three axes.  The batch is split over `data` and `fsdp`.  Parameters, their averages and
the optimizer's moments are whole along `data`, split along `fsdp` (ZeRO 3, Rajbhandari et al. 2020,
1910.02054: gathered where they are used), and along `tensor` where TENSOR_PARALLEL has a row for
them (Shoeybi et al. 2019, 1909.08053, section 3).  Networks name the axes of their activations;
LOGICAL says what the names mean on a mesh.  Which mesh, the results agree but for rounding.

Where several processes run, a mesh has the same number of devices of each; what is placed on it
every process holds whole, but for the batches of a training, of which each reads its rows.
"""

import argparse
from collections.abc import Callable, Iterable
import contextlib
import functools
import math
import os
from pathlib import Path
import re
from typing import Any, NamedTuple

from flax import linen as nn
import jax
from jax.experimental import mesh_utils, multihost_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
import numpy as np

from jldm.core.errors import UserError
from jldm.distributed import multihost

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
Rules = Iterable[tuple[str, int]]
TENSOR_PARALLEL: Rules = (  # the last parts of a parameter's path -> which of its axes, from the end, is split over `tensor`
  (r"attention/(qkv|q|k|v)/kernel$", -1),
  (r"mlp/in/kernel$", -1),
  (r"(attention|mlp)/out/kernel$", -2),
  (r"resnet\d*/(conv1|embedding)/kernel$", -1),
  (r"resnet\d*/conv2/kernel$", -2),
)
LOGICAL = (
  ("batch", BATCH),
  ("heads", "tensor"),
  ("hidden", "tensor"),
)  # of activations; every other name is whole
SMALL = (
  2**12
)  # values: what has fewer is whole on every device, where gathering it would cost more than it saves


class Layout(NamedTuple):
  """How many devices (None: all), and how many ways parameters are split over two axes of the mesh;
  the rest is `data`.
  """

  devices: int | None = None
  fsdp: int = 1
  tensor: int = 1


Devices = int | Layout | None


def configure(devices: int | None = None, args: argparse.Namespace | None = None) -> None:
  """To be called by an entry point before anything touches a device; `args` of `add_arguments` join
  other processes.

  The CPU becomes as many devices as it has cores (or as are asked for): convolutions leave half a
  core idle within an op, and a sharded batch does not.  Where XLA_FLAGS already says so, or a
  device has been touched, nothing changes. Compiled programs are kept between runs, in
  JAX_COMPILATION_CACHE_DIR if set.
  """
  if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    with contextlib.suppress(
      RuntimeError
    ):  # the devices are open already, by a caller who chose their number
      jax.config.update("jax_num_cpu_devices", max(1, devices or os.cpu_count() or 1))
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "jldm" / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  if args is not None:
    multihost.join(args)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The options that choose a layout, and join processes, for a command's parser."""
  parser.add_argument(
    "--devices", type=int, help="how many devices, where several processes run of each (default: all)"
  )
  parser.add_argument(
    "--fsdp", type=int, default=1, help="ways to split parameters, gathered where used; splits the batch too"
  )
  parser.add_argument("--tensor", type=int, default=1, help="ways to split wide layers, and their work")
  multihost.add_arguments(parser)


def asked(args: argparse.Namespace) -> Layout:
  return Layout(args.devices and args.devices * jax.process_count(), args.fsdp, args.tensor)


def layout(devices: Devices) -> Layout:
  return devices if isinstance(devices, Layout) else Layout(devices)


def choose(devices: int | None = None) -> list[jax.Device]:
  """The first `devices` devices, as many of each process; by default all.

  Raises:
    UserError: fewer than one, more than there are, or not as many of each process.
  """
  available, count = jax.devices(), jax.process_count()
  if devices is not None and not 1 <= devices <= len(available):
    where = "here" if count == 1 else "of all processes"
    raise UserError(
      f"devices={devices}; expected 1 to {len(available)}, the number of {available[0].platform} devices {where}"
    )
  if devices is not None and devices % count:
    raise UserError(
      f"devices={devices} are not as many of each of {count} processes; expected a multiple of {count}"
    )
  each = [[device for device in available if device.process_index == process] for process in range(count)]
  return available if devices is None else [device for own in each for device in own[: devices // count]]


def mesh_for(batch_size: int, devices: Devices = None) -> Mesh:
  """A mesh ("data", "fsdp", "tensor") of a layout; by default all devices, but on a CPU the most that
  divide the batch.

  Raises:
    UserError: more devices than there are, a layout that does not divide them, or a batch that they
      do not divide.
  """
  wanted, fsdp, tensor = layout(devices)
  chosen = choose(wanted)
  if fsdp < 1 or tensor < 1 or len(chosen) % (fsdp * tensor):
    raise UserError(
      f"fsdp={fsdp} times tensor={tensor} does not divide {len(chosen)} devices; expected factors of it"
    )
  least = math.lcm(fsdp * tensor, jax.process_count())
  legal_counts = [n for n in range(least, len(jax.devices()) + 1, least) if batch_size % (n // tensor) == 0]
  if wanted is None and chosen[0].platform == "cpu" and legal_counts:
    chosen = choose(legal_counts[-1])
  ways = len(chosen) // tensor
  if batch_size % ways:
    below = batch_size // ways * ways
    legal = [str(n) for n in (below, below + ways) if n]
    raise UserError(
      f"batch size {batch_size} is not divisible by {ways} devices; use batch size {' or '.join(legal)}"
      + (
        f", or --devices {' or '.join(str(n // jax.process_count()) for n in legal_counts)}"
        if legal_counts
        else ""
      )
    )
  return arranged(chosen, fsdp, tensor)


def arranged(devices: list[jax.Device], fsdp: int = 1, tensor: int = 1) -> Mesh:
  """The mesh of some devices; that of all TPUs is laid out by how they are wired, so that what is
  split last talks least far, and slices, between which no wires are, share `data` alone where they
  divide it.
  """
  data, slices = (
    len(devices) // (fsdp * tensor),
    len({getattr(device, "slice_index", 0) for device in devices}),
  )
  if devices[0].platform == "tpu" and len(devices) == jax.device_count() and data % slices == 0:
    inner, outer = (data // slices, fsdp, tensor), (slices, 1, 1)
    grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
  else:
    grid = np.asarray(devices).reshape(data, fsdp, tensor)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_of_rows(count: int, most: int, devices: Devices = None) -> tuple[Mesh, int]:
  """A mesh for `count` rows, about `most` at a time, and the batch size that it divides: what fills a
  batch up is dropped.

  Raises:
    UserError: as `mesh_for`.
  """
  wanted = layout(devices)
  parts = max(1, len(choose(wanted.devices)) // wanted.tensor)
  if wanted.fsdp == wanted.tensor == jax.process_count() == 1:
    parts = min(parts, count)
  batch_size = math.ceil(min(most, count) / parts) * parts
  return mesh_for(batch_size, wanted._replace(devices=parts * wanted.tensor)), batch_size


def ways(mesh: Mesh) -> int:
  """Into how many parts a batch is split."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
  """The leading axis split over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def spec(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = TENSOR_PARALLEL) -> PartitionSpec:
  """Where an array of a state lives, by its path "a/b/kernel": the first rule that fits, then the
  largest axis that is left and that `fsdp` divides.
  """
  axes: list[str | None] = [None] * len(shape)
  if math.prod(shape) < SMALL:
    return PartitionSpec()
  axis = next((axis for pattern, axis in rules if re.search(pattern, path) and -axis <= len(shape)), None)
  if axis is not None and mesh.shape["tensor"] > 1 and shape[axis] % mesh.shape["tensor"] == 0:
    axes[axis] = "tensor"
  free = [n for n, length in enumerate(shape) if axes[n] is None and length % mesh.shape["fsdp"] == 0]
  if free and mesh.shape["fsdp"] > 1:
    axes[max(free, key=lambda n: (shape[n], n))] = "fsdp"
  return PartitionSpec(*axes)


def split(mesh: Mesh, tree: Any, rules: Rules = TENSOR_PARALLEL) -> Any:
  """The sharding of every leaf of a state, of arrays or shapes."""
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return jax.tree_util.tree_map_with_path(
    lambda path, x: NamedSharding(mesh, spec(name(path), x.shape, mesh, rules)), tree
  )


def on(mesh: Mesh, call: Callable) -> Callable:
  """The jitted `call`, in which the names that networks give to the axes of their activations mean
  those of the mesh.

  Where parameters are whole, what a split batch makes of activations needs no names.
  """
  if mesh.shape["fsdp"] == mesh.shape["tensor"] == 1:
    return call

  @functools.wraps(call)
  def bound(*args: Any, **kwargs: Any) -> Any:
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL):
      return call(*args, **kwargs)

  return bound


def own(mesh: Mesh) -> Mesh:
  """The devices of this process, for what it does by itself."""
  return arranged([device for device in mesh.devices.flat if device.process_index == jax.process_index()])


def rows_here(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of a batch that the devices of this process hold, ascending: what it has to read."""
  held = batched(mesh).addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[index] for index in held]))


def place_share(mesh: Mesh, batch_size: int, share: Any) -> Any:
  """`rows_here` of a batch (numpy, [b, ...]) as global arrays [B, ...]."""
  sharding, rows = batched(mesh), rows_here(mesh, batch_size)

  def whole(x: np.ndarray) -> jax.Array:
    part = lambda index: x[slice(*np.searchsorted(rows, index[0].indices(batch_size)[:2]))]
    return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, part)

  return jax.tree.map(whole, share)


def place_batch(mesh: Mesh, batch: Any) -> Any:
  """A batch (numpy, [B, ...]), that every process holds whole, as global arrays."""
  return jax.tree.map(lambda x: put(x, batched(mesh)), batch)


def place(mesh: Mesh, tree: Any) -> Any:
  """Every leaf whole on every device."""
  return jax.tree.map(lambda x: put(x, replicated(mesh)), tree)


def spread(mesh: Mesh, tree: Any) -> Any:
  """Every leaf split as `split` says."""
  return jax.tree.map(put, tree, split(mesh, tree))


def put(x: Any, at: Sharding) -> jax.Array:
  """`jax.device_put`, and of what this process holds whole also onto devices of others, who hold the same."""
  if at.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
    return jax.device_put(x, at)
  if jnp.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
    return jax.random.wrap_key_data(put(jax.random.key_data(x), at), impl=jax.random.key_impl(x))
  host = np.asarray(x)
  return jax.make_array_from_callback(host.shape, at, lambda index: host[index])


def fetch(tree: Any) -> Any:
  """Every leaf whole as numpy, in every process."""
  if not multihost.several():
    return jax.device_get(tree)
  apart = lambda x: isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
  return jax.tree.map(
    lambda x: multihost_utils.process_allgather(x, tiled=True) if apart(x) else np.asarray(x), tree
  )


def quick_compile(mesh: Mesh) -> dict:
  """Compiler options for a program that runs once: on a CPU, optimising the random numbers of an
  initialisation takes six times longer than not doing so.
  """
  return {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else {}
