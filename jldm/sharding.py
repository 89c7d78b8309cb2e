"""Devices: how many, which mesh, and where arrays live on it.

The batch is sharded over one mesh axis, `data`; parameters are replicated.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from jldm.core.errors import UserError


def configure(devices: int | None = None) -> None:
  """To be called by an entry point before anything touches a device.

  The CPU becomes as many devices as it has cores (or as are asked for): convolutions leave half a core idle within an
  op, and a sharded batch does not.  Where XLA_FLAGS already says so, or a device has been touched, nothing changes.
  Compiled programs are kept between runs, in JAX_COMPILATION_CACHE_DIR if set.
  """
  if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    with contextlib.suppress(RuntimeError):  # the devices are open already, by a caller who chose their number
      jax.config.update("jax_num_cpu_devices", max(1, devices or os.cpu_count() or 1))
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "jldm" / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def choose(devices: int | None = None) -> list[jax.Device]:
  """The first `devices` devices; by default all.

  Raises:
    UserError: fewer than one, or more than there are.
  """
  available = jax.devices()
  if devices is not None and not 1 <= devices <= len(available):
    raise UserError(f"devices={devices}; expected 1 to {len(available)}, the number of {available[0].platform} devices here")
  return available[:devices]


def data_mesh(batch_size: int, devices: int | None = None) -> Mesh:
  """A mesh ("data",) over `devices` devices; by default all, but on a CPU the most that divide the batch.

  Raises:
    UserError: more devices than there are, or a batch that they do not divide.
  """
  chosen = choose(devices)
  divisors = [n for n in range(1, len(jax.devices()) + 1) if batch_size % n == 0]
  if devices is None and chosen[0].platform == "cpu":
    chosen = chosen[: divisors[-1]]
  if batch_size % len(chosen):
    below = batch_size // len(chosen) * len(chosen)
    legal = [str(n) for n in (below, below + len(chosen)) if n]
    raise UserError(
      f"batch size {batch_size} is not divisible by {len(chosen)} devices; "
      f"use batch size {' or '.join(legal)}, or --devices {' or '.join(map(str, divisors))}"
    )
  return Mesh(np.asarray(chosen), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh) -> NamedSharding:
  """The leading axis split over `data`."""
  return NamedSharding(mesh, PartitionSpec("data"))


def place_batch(mesh: Mesh, batch: Any) -> Any:
  """This process's rows of a batch (numpy, [b, ...]) as global arrays [B, ...]."""
  sharding = batched(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def place(mesh: Mesh, tree: Any) -> Any:
  """Every leaf whole on every device."""
  return jax.device_put(tree, replicated(mesh))


def quick_compile(mesh: Mesh) -> dict:
  """Compiler options for a program that runs once: on a CPU, optimising the random numbers of an initialisation takes
  six times longer than not doing so."""
  return {"xla_backend_optimization_level": 0} if mesh.devices.flat[0].platform == "cpu" else {}
