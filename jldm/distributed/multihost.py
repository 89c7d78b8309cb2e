"""A run of several processes, each with its own devices: how they connect, agree and stop together.

All processes run the same program on one mesh and see the same folders.  Process 0 is the primary:
it alone writes files and prints.  A decision that must be the same in all of them is `broadcast`.
If one process ends, the others end too.  With one process every function here does nothing.
"""

import argparse
import functools
import os
import re
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from jldm.core.errors import RESUME_HINT, Preempted, UserError

HEARTBEAT_S = 4  # a process that is silent for so long counts as ended
CONNECT_S = 300  # how long a process waits for the others at the start
SHUTDOWN_S = 3600  # how long it waits at the end for one that still writes
LAUNCHERS = {  # launcher -> (the environment variable that has the process count, how to read it)
  "Slurm (srun)": ("SLURM_STEP_NUM_TASKS", int),
  "Open MPI 4": ("OMPI_COMM_WORLD_SIZE", int),
  "GKE, a slice of TPUs": ("TPU_WORKER_HOSTNAMES", lambda names: len(names.split(","))),
  "GKE, several slices": ("MEGASCALE_NUM_SLICES", int),
}
LOST_CONNECTION = (
  "gloo",
  "nccl",
  "coordination service",
  "connection closed",
  "connection reset",
  "heartbeat",
  "socket closed",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options that connect the processes of a run."""
  parser.add_argument(
    "--distributed",
    action="store_true",
    help="connect to the other processes of a TPU pod; not needed under srun, mpirun (4) and on GKE",
  )
  parser.add_argument(
    "--coordinator", metavar="HOST:PORT", help="without such a launcher: the address of process 0"
  )
  parser.add_argument("--processes", type=int, metavar="N", help="how many processes run this command")
  parser.add_argument("--process", type=int, metavar="I", help="the number of this process, 0 to N - 1")


def connect(args: argparse.Namespace) -> None:
  """Connects to the other processes, if there are any; call it before anything touches a device.

  If they do not connect within CONNECT_S, this process exits with one line and code 2; JAX would abort.

  Raises:
    UserError: options that contradict each other, or nothing that says where the others are.
  """
  coordinator, process_count, process_index = given = (args.coordinator, args.processes, args.process)
  if any(value is not None for value in given):
    complete = None not in given
    if not (complete and re.fullmatch(r".+:\d{1,5}", coordinator) and 0 <= process_index < process_count):
      raise UserError(
        f"--coordinator {coordinator} --processes {process_count} --process {process_index}; expected "
        "HOST:PORT, N, and a number from 0 to N - 1, all three"
      )
  elif not (args.distributed or launched_by_scheduler()):
    return
  timer = threading.Timer(CONNECT_S, exit_unconnected, [args])
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      *given,
      heartbeat_timeout_seconds=HEARTBEAT_S,
      initialization_timeout=2 * CONNECT_S,
      shutdown_timeout_seconds=SHUTDOWN_S,
    )
  except (ValueError, RuntimeError) as error:
    reason = " ".join(str(error).split())[:200]
    raise UserError(
      f"the other processes of this run were not found ({reason}); give --coordinator HOST:PORT "
      "--processes N --process I, the same HOST:PORT to all"
    ) from error
  finally:
    timer.cancel()
  signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has just installed a handler of its own


def exit_unconnected(args: argparse.Namespace) -> NoReturn:
  where = f" at --coordinator {args.coordinator}" if args.coordinator else ""
  print(
    f"error: the other processes of this run did not connect within {CONNECT_S} s{where}; start all of them "
    "with the same HOST:PORT: the host of process 0 and a free port on it",
    file=sys.stderr,
  )
  exit_process(2)


def launched_by_scheduler() -> bool:
  """Whether the environment says that this is one of several processes."""
  return any(
    variable in os.environ and count(os.environ[variable]) > 1 for variable, count in LAUNCHERS.values()
  )


def is_multiprocess() -> bool:
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
  """Whether this is the process that writes files and prints."""
  return not is_multiprocess() or jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns when all processes have called it with the same `name`; then each sees what the others wrote."""
  if is_multiprocess():
    multihost_utils.sync_global_devices(name)


def broadcast(value: Any) -> Any:
  """The number that process 0 passed."""
  return multihost_utils.broadcast_one_to_all(np.asarray(value)).item() if is_multiprocess() else value


def start_any(flag: bool) -> jax.Array:
  """Whether any process passed True, as an array; the call does not wait for the result."""
  mesh = Mesh(np.asarray(jax.devices()), "all")
  flags = jax.make_array_from_callback(
    (mesh.size,), NamedSharding(mesh, PartitionSpec("all")), lambda index: np.array([flag])
  )
  return _any(flags, NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnums=1)
def _any(flags: jax.Array, replicated: NamedSharding) -> jax.Array:
  return jax.lax.with_sharding_constraint(flags.any(), replicated)


def any_process(flag: bool) -> bool:
  """Whether any process passed True."""
  return bool(start_any(flag)) if is_multiprocess() else flag


def all_processes(flag: bool) -> bool:
  """Whether every process passed True."""
  return not any_process(not flag)


def is_lost_connection(error: BaseException) -> bool:
  """Whether an exception means that another process has ended."""
  if not is_multiprocess() or isinstance(error, UserError):
    return False
  return any(word in str(error).lower() for word in LOST_CONNECTION)


def exit_process(code: int) -> NoReturn:
  """Exits at once: JAX would wait minutes for the other processes, which exit when this one is missing."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def exit_after_error(error: BaseException) -> NoReturn:
  """Exits because of an exception that is not a person's mistake."""
  if is_lost_connection(error):
    print(f"another process of this run has ended; {RESUME_HINT}", file=sys.stderr)
    exit_process(Preempted.EXIT_CODE)
  traceback.print_exception(error)
  exit_process(1)
