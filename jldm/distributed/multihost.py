"""Several processes of one run, each with devices of its own: how they find each other, agree, and end together.

All run the same program on one mesh and see the same folders; process 0 alone writes and speaks.
What they must not decide by themselves is `agreed`.  Where one ends, the others end as well: there
is nothing that they could do without it.  With one process nothing here does anything.
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

from jldm.core.errors import GO_ON, Preempted, UserError

HEARTBEAT_S = 4  # a process that is silent for as long has ended, and the others end
CONNECT_S = 300  # to wait for the others at the start
END_S = 3600  # at the end, for one that still writes
STARTED = {  # what starts several processes -> the variable by which each of them knows how many there are
  "Slurm (srun)": ("SLURM_STEP_NUM_TASKS", int),
  "Open MPI 4": ("OMPI_COMM_WORLD_SIZE", int),
  "GKE, a slice of TPUs": ("TPU_WORKER_HOSTNAMES", lambda names: len(names.split(","))),
  "GKE, several slices": ("MEGASCALE_NUM_SLICES", int),
}
LOST = (
  "gloo",
  "nccl",
  "coordination service",
  "connection closed",
  "connection reset",
  "heartbeat",
  "socket closed",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The options by which the processes of a run find each other, for a command's parser."""
  parser.add_argument(
    "--distributed",
    action="store_true",
    help="join the other processes of a TPU pod; under srun, mpirun (4) and on GKE that goes without saying",
  )
  parser.add_argument(
    "--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 of --processes listens"
  )
  parser.add_argument("--processes", type=int, metavar="N", help="how many processes run this command")
  parser.add_argument("--process", type=int, metavar="I", help="which of them this is, 0 to N - 1")


def join(args: argparse.Namespace) -> None:
  """Finds the other processes, where there are any; before anything touches a device.

  Where they do not come within CONNECT_S this process ends, with a line and exit code 2: JAX would abort.

  Raises:
    UserError: options that do not fit each other, or nothing that says where the others are.
  """
  given = (args.coordinator, args.processes, args.process)
  if any(value is not None for value in given):
    if None in given or not (
      re.fullmatch(r".+:\d{1,5}", args.coordinator) and 0 <= args.process < args.processes
    ):
      raise UserError(
        f"--coordinator {args.coordinator} --processes {args.processes} --process {args.process}; expected "
        "HOST:PORT, N, and a number from 0 to N - 1, all three"
      )
  elif not (args.distributed or started()):
    return
  late = threading.Timer(CONNECT_S, give_up, [args])
  late.daemon = True
  late.start()
  try:
    jax.distributed.initialize(
      *given,
      heartbeat_timeout_seconds=HEARTBEAT_S,
      initialization_timeout=2 * CONNECT_S,
      shutdown_timeout_seconds=END_S,
    )
  except (ValueError, RuntimeError) as error:
    told = " ".join(str(error).split())[:200]
    raise UserError(
      f"the other processes of this run were not found ({told}); give --coordinator HOST:PORT --processes N "
      "--process I, the same HOST:PORT to all"
    ) from error
  finally:
    late.cancel()
  signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which JAX has just taken


def give_up(args: argparse.Namespace) -> NoReturn:
  where = f" at --coordinator {args.coordinator}" if args.coordinator else ""
  print(
    f"error: the other processes of this run did not come within {CONNECT_S} s{where}; start all of them, with the same "
    "HOST:PORT, of the host of process 0 and a port that is free there",
    file=sys.stderr,
  )
  leave(2)


def started() -> bool:
  """Whether the environment says that this is one of several processes."""
  return any(
    variable in os.environ and count(os.environ[variable]) > 1 for variable, count in STARTED.values()
  )


def several() -> bool:
  return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
  """Whether this is the process that writes and speaks."""
  return not several() or jax.process_index() == 0


def meet(where: str) -> None:
  """Returns when all processes have come here: what one wrote before, the others see; `where` is the
  same of all.
  """
  if several():
    multihost_utils.sync_global_devices(where)


def agreed(value: Any) -> Any:
  """The number that process 0 came with."""
  return multihost_utils.broadcast_one_to_all(np.asarray(value)).item() if several() else value


def send(flag: bool) -> jax.Array:
  """Whether any process came with True, as an array that nobody has to wait for yet."""
  every = Mesh(np.asarray(jax.devices()), "all")
  told = jax.make_array_from_callback(
    (every.size,), NamedSharding(every, PartitionSpec("all")), lambda index: np.array([flag])
  )
  return _any(told, NamedSharding(every, PartitionSpec()))


@functools.partial(jax.jit, static_argnums=1)
def _any(flags: jax.Array, whole: NamedSharding) -> jax.Array:
  return jax.lax.with_sharding_constraint(flags.any(), whole)


def any_of(flag: bool) -> bool:
  """Whether any process came with True."""
  return bool(send(flag)) if several() else flag


def all_of(flag: bool) -> bool:
  """Whether every process came with True."""
  return not any_of(not flag)


def lost(error: BaseException) -> bool:
  """Whether an exception says that another process has ended."""
  return several() and not isinstance(error, UserError) and any(word in str(error).lower() for word in LOST)


def leave(code: int) -> NoReturn:
  """Ends this process now: JAX would wait minutes for the others, which end when they miss it."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def leave_by(error: BaseException) -> NoReturn:
  """Ends this process over an exception that is no person's mistake."""
  if lost(error):
    print(f"another process of this run has ended; {GO_ON}", file=sys.stderr)
    leave(Preempted.EXIT_CODE)
  traceback.print_exception(error)
  leave(1)
