"""Devices: how many, which mesh, and how arrays are sharded over it.

A mesh has three axes: `data`, `fsdp` and `tensor`.  The batch is split over `data` and `fsdp`.
Parameters, their averages and the optimizer's moments are

- replicated over `data`,
- split over `fsdp` (ZeRO 3, Rajbhandari et al. 2020, 1910.02054: gathered where they are used),
- split over `tensor` if TENSOR_PARALLEL has a rule for them (Shoeybi et al. 2019, 1909.08053, section 3).

Networks name the axes of their activations; LOGICAL_AXES maps these names to axes of the mesh.
Results do not depend on the mesh, except for rounding.

With several processes a mesh has the same number of devices of each.  Every process holds the whole
of what is placed on the mesh, except training batches: of those it reads only its own rows.
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
from jldm.core.trees import map_named
from jldm.distributed import multihost

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")
Rules = Iterable[tuple[str, int]]
# The end of a parameter's path -> the axis, counted from the end, that is split over `tensor`.
TENSOR_PARALLEL: Rules = (
  (r"attention/(qkv|q|k|v)/kernel$", -1),
  (r"mlp/in/kernel$", -1),
  (r"(attention|mlp)/out/kernel$", -2),
  (r"resnet\d*/(conv1|embedding)/kernel$", -1),
  (r"resnet\d*/conv2/kernel$", -2),
)
# Axes of activations -> axes of the mesh; all others are not split.
LOGICAL_AXES = (("batch", BATCH), ("heads", "tensor"), ("hidden", "tensor"))
SMALLEST_SPLIT = 2**12  # smaller arrays are replicated: gathering them would cost more than it saves


class Layout(NamedTuple):
  """The number of devices (None: all) and the sizes of two axes of the mesh; `data` takes the rest."""

  devices: int | None = None
  fsdp: int = 1
  tensor: int = 1


Devices = int | Layout | None


def configure(devices: int | None = None, args: argparse.Namespace | None = None) -> None:
  """Configures JAX; an entry point calls it before anything touches a device.

  The CPU is divided into `devices` devices, by default one per core: a convolution leaves half a
  core idle, a sharded batch does not.  Nothing changes if XLA_FLAGS already sets the number, or if
  a device has been touched.  Compiled programs are cached between runs, in JAX_COMPILATION_CACHE_DIR
  if it is set.  With the `args` of `add_arguments` it also connects to the other processes.

  Raises:
    UserError: fewer than one device.
  """
  if devices is not None and devices < 1:
    raise UserError(f"devices={devices}; expected at least 1, or leave --devices out for all")
  if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    # A RuntimeError means that the caller has opened the devices and chosen their number.
    with contextlib.suppress(RuntimeError):
      jax.config.update("jax_num_cpu_devices", devices or os.cpu_count() or 1)
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "jldm" / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  if args is not None:
    multihost.connect(args)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options that choose a layout and connect processes."""
  parser.add_argument(
    "--devices", type=int, help="number of devices, per process if there are several (default: all)"
  )
  parser.add_argument(
    "--fsdp", type=int, default=1, help="split parameters, gathered where used, and the batch this many ways"
  )
  parser.add_argument("--tensor", type=int, default=1, help="split wide layers and their work this many ways")
  multihost.add_arguments(parser)


def layout_from_args(args: argparse.Namespace) -> Layout:
  """The layout that the options of `add_arguments` choose."""
  return Layout(args.devices and args.devices * jax.process_count(), args.fsdp, args.tensor)


def as_layout(devices: Devices) -> Layout:
  return devices if isinstance(devices, Layout) else Layout(devices)


def choose_devices(devices: int | None = None) -> list[jax.Device]:
  """The first `devices` devices, equally many of each process; by default all.

  Raises:
    UserError: fewer than one, more than there are, or a number that the processes do not divide.
  """
  available, process_count = jax.devices(), jax.process_count()
  if devices is None:
    return available
  if not 1 <= devices <= len(available):
    where = "of this machine" if process_count == 1 else "of all processes"
    raise UserError(
      f"devices={devices}; expected 1 to {len(available)}, "
      f"the number of {available[0].platform} devices {where}"
    )
  if devices % process_count:
    raise UserError(
      f"devices={devices} cannot be divided among {process_count} processes; "
      f"expected a multiple of {process_count}"
    )
  by_process = [[d for d in available if d.process_index == process] for process in range(process_count)]
  return [device for local in by_process for device in local[: devices // process_count]]


def mesh_for(batch_size: int, devices: Devices = None) -> Mesh:
  """A mesh ("data", "fsdp", "tensor") of a layout.

  By default it has all devices; on a CPU, the largest number that divides the batch.

  Raises:
    UserError: more devices than there are, a layout that does not divide them, or a batch that they
      do not divide.
  """
  requested, fsdp, tensor = as_layout(devices)
  chosen = choose_devices(requested)
  if fsdp < 1 or tensor < 1 or len(chosen) % (fsdp * tensor):
    raise UserError(
      f"fsdp={fsdp} times tensor={tensor} does not divide {len(chosen)} devices; expected factors of it"
    )
  least = math.lcm(fsdp * tensor, jax.process_count())
  legal_counts = [n for n in range(least, len(jax.devices()) + 1, least) if batch_size % (n // tensor) == 0]
  if requested is None and chosen[0].platform == "cpu" and legal_counts:
    chosen = choose_devices(legal_counts[-1])
  ways = len(chosen) // tensor
  if batch_size % ways:
    below = batch_size // ways * ways
    legal = [str(n) for n in (below, below + ways) if n]
    counts = " or ".join(str(n // jax.process_count()) for n in legal_counts)
    other = f", or --devices {counts}" if counts else ""
    raise UserError(
      f"batch size {batch_size} is not divisible by {ways} devices; "
      f"use batch size {' or '.join(legal)}{other}"
    )
  return make_mesh(chosen, fsdp, tensor)


def make_mesh(devices: list[jax.Device], fsdp: int = 1, tensor: int = 1) -> Mesh:
  """A mesh of the given devices, with `data` as large as they allow.

  The mesh of all TPUs follows their wiring: neighbours on the last axis are the nearest.  Slices are
  not wired to each other, so they share `data` alone, if their number divides it.
  """
  data = len(devices) // (fsdp * tensor)
  slices = len({getattr(device, "slice_index", 0) for device in devices})
  if devices[0].platform == "tpu" and len(devices) == jax.device_count() and data % slices == 0:
    inner, outer = (data // slices, fsdp, tensor), (slices, 1, 1)
    grid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
  else:
    grid = np.asarray(devices).reshape(data, fsdp, tensor)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_for_samples(count: int, most: int, devices: Devices = None) -> tuple[Mesh, int]:
  """A mesh for `count` samples in batches of about `most`, and the batch size, which the mesh divides.

  The caller pads the last batch and drops the padding.

  Raises:
    UserError: as `mesh_for`.
  """
  requested = as_layout(devices)
  shards = max(1, len(choose_devices(requested.devices)) // requested.tensor)
  if requested.fsdp == requested.tensor == jax.process_count() == 1:
    shards = min(shards, count)
  batch_size = math.ceil(min(most, count) / shards) * shards
  return mesh_for(batch_size, requested._replace(devices=shards * requested.tensor)), batch_size


def batch_shard_count(mesh: Mesh) -> int:
  """The number of shards of a batch."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def replicated_sharding(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The leading axis split over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec(BATCH))


def partition_spec(
  path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = TENSOR_PARALLEL
) -> PartitionSpec:
  """How an array of a state is split, by its path "a/b/kernel".

  The first rule that matches chooses the axis for `tensor`; of the axes left, `fsdp` takes the
  largest that it divides.
  """
  axes: list[str | None] = [None] * len(shape)
  if math.prod(shape) < SMALLEST_SPLIT:
    return PartitionSpec()
  axis = next((axis for pattern, axis in rules if re.search(pattern, path) and -axis <= len(shape)), None)
  if axis is not None and mesh.shape["tensor"] > 1 and shape[axis] % mesh.shape["tensor"] == 0:
    axes[axis] = "tensor"
  free = [n for n, length in enumerate(shape) if axes[n] is None and length % mesh.shape["fsdp"] == 0]
  if free and mesh.shape["fsdp"] > 1:
    axes[max(free, key=lambda n: (shape[n], n))] = "fsdp"
  return PartitionSpec(*axes)


def shardings_like(mesh: Mesh, tree: Any, rules: Rules = TENSOR_PARALLEL) -> Any:
  """The sharding of every leaf of a state; leaves are arrays or shapes."""
  return map_named(lambda path, x: NamedSharding(mesh, partition_spec(path, x.shape, mesh, rules)), tree)


def with_mesh(mesh: Mesh, call: Callable) -> Callable:
  """The jitted `call` with LOGICAL_AXES of `mesh` in force.

  If parameters are replicated, XLA shards the activations by the batch alone and needs no names.
  """
  if mesh.shape["fsdp"] == mesh.shape["tensor"] == 1:
    return call

  @functools.wraps(call)
  def bound(*args: Any, **kwargs: Any) -> Any:
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXES):
      return call(*args, **kwargs)

  return bound


def local_mesh(mesh: Mesh) -> Mesh:
  """A mesh of this process's devices, for work that it does alone."""
  return make_mesh([device for device in mesh.devices.flat if device.process_index == jax.process_index()])


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
  """The rows of a batch that this process reads, ascending: those on its devices."""
  slices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[index] for index in slices]))


def place_local_rows(mesh: Mesh, batch_size: int, local: Any) -> Any:
  """`local_rows` of a batch (numpy, [b, ...]) as global arrays [B, ...]."""
  sharding, rows = batch_sharding(mesh), local_rows(mesh, batch_size)

  def to_global(x: np.ndarray) -> jax.Array:
    def local_shard(index: tuple) -> np.ndarray:
      return x[slice(*np.searchsorted(rows, index[0].indices(batch_size)[:2]))]

    return jax.make_array_from_callback((batch_size, *x.shape[1:]), sharding, local_shard)

  return jax.tree.map(to_global, local)


def shard_batch(mesh: Mesh, batch: Any) -> Any:
  """A batch (numpy, [B, ...]) that every process holds whole, as global arrays split by rows."""
  return jax.tree.map(lambda x: put_array(x, batch_sharding(mesh)), batch)


def replicate(mesh: Mesh, tree: Any) -> Any:
  """Copies every leaf to every device."""
  return jax.tree.map(lambda x: put_array(x, replicated_sharding(mesh)), tree)


def shard(mesh: Mesh, tree: Any) -> Any:
  """Splits every leaf as `shardings_like` says."""
  return jax.tree.map(put_array, tree, shardings_like(mesh, tree))


def place_named(mesh: Mesh, path: str, x: Any) -> jax.Array:
  """One leaf, by its path, split as `shard` splits it."""
  return put_array(x, NamedSharding(mesh, partition_spec(path, x.shape, mesh)))


def put_array(x: Any, at: Sharding) -> jax.Array:
  """`jax.device_put` that also works across processes: each holds the same whole `x` and puts its shards."""
  if at.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
    return jax.device_put(x, at)
  if jnp.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key):
    return jax.random.wrap_key_data(put_array(jax.random.key_data(x), at), impl=jax.random.key_impl(x))
  host = np.asarray(x)
  return jax.make_array_from_callback(host.shape, at, lambda index: host[index])


def fetch(tree: Any) -> Any:
  """Gathers every leaf as numpy, in every process."""
  if not multihost.is_multiprocess():
    return jax.device_get(tree)
  is_split = lambda x: isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)
  return jax.tree.map(
    lambda x: multihost_utils.process_allgather(x, tiled=True) if is_split(x) else np.asarray(x), tree
  )


def quick_compile_options(mesh: Mesh) -> dict:
  """Compiler options for a program that runs once: no optimisation on a CPU.

  Optimising the random numbers of an initialisation takes six times as long as running them unoptimised.
  """
  return {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else {}
