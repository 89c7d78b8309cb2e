"""A run of several processes, each with its own devices: how they connect, agree and stop together.

All processes run the same program on one mesh and see the same folders.  Process 0 is the primary:
it alone writes files and prints.  A decision that must be the same in all of them is `broadcast`.
If one process ends, the others end too, by heartbeat.py.  With one process every function here does nothing.
"""

import argparse
import atexit
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import os
import re
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

import jax
from jax._src.clusters import ClusterEnv  # what jax.distributed.initialize asks where it is told nothing
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from jldm.core.errors import RESUME_HINT, Preempted, UserError
from jldm.distributed.heartbeat import SILENCE_S, Watch

CONNECT_S = 300  # how long a process waits for the others at the start
SHUTDOWN_S = 3600  # how long it waits at the end for one that still writes
JAX_HEARTBEAT_S = 1200  # JAX aborts a process whose peer is silent: the watch is to notice it long before
TRACEBACK_S = 3  # how long an exception waits for the news that a lost process is its cause
LAUNCHERS = {  # launcher -> (the environment variable that has the process count, how to read it)
  "Slurm (srun)": ("SLURM_STEP_NUM_TASKS", int),
  "Open MPI 4": ("OMPI_COMM_WORLD_SIZE", int),
  "GKE, a slice of TPUs": ("TPU_WORKER_HOSTNAMES", lambda names: len(names.split(","))),
  "GKE, several slices": ("MEGASCALE_NUM_SLICES", int),
}
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # gRPC asks the first of them for every address
NO_PROXY = "no_proxy"  # but for those of this list
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


@dataclasses.dataclass
class Connected:
  """What connects this process to the others, if there are any, and what is released if one is lost."""

  watch: Watch | None = None
  at_exit: list[Callable[[], None]] = dataclasses.field(default_factory=list)


CONNECTED = Connected()


def connect(args: argparse.Namespace) -> None:
  """Connects to the other processes, if there are any; call it before anything touches a device.

  Raises:
    UserError: options that contradict each other, nothing that says where the others are, or others that
      do not connect within CONNECT_S.
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
  with exiting_if_unconnected(args):
    found = ClusterEnv.auto_detect_unset_distributed_params(*given, None, None, CONNECT_S)
  address, count, number, local_devices = found
  if None in (address, count, number):
    raise UserError(
      "the other processes of this run were not found: nothing here says how many there are, and where; give "
      "--coordinator HOST:PORT --processes N --process I, the same HOST:PORT to all"
    )
  watch = Watch(address, count, number, lambda text: exit_lost(text, number))
  watch.start()
  watch.meet(CONNECT_S)
  CONNECTED.watch = watch
  with exiting_if_unconnected(args):
    start_jax(watch, local_devices)
  sys.excepthook = lambda kind, error, trace: exit_after_error(error)
  threading.excepthook = tell_late(threading.excepthook)
  atexit.register(finish, 0)


def start_jax(watch: Watch, local_devices: list[int] | None) -> None:
  """Starts JAX on all processes, which reaches its coordination service through the watch."""
  if any(name in os.environ for name in PROXIES):
    os.environ[NO_PROXY] = ",".join(filter(None, (os.environ.get(NO_PROXY), "127.0.0.1")))
  try:
    jax.distributed.initialize(
      watch.jax_address,
      watch.count,
      watch.number,
      local_devices,
      coordinator_bind_address=watch.jax_address,
      heartbeat_timeout_seconds=JAX_HEARTBEAT_S,
      initialization_timeout=2 * CONNECT_S,
      shutdown_timeout_seconds=SHUTDOWN_S,
    )
  except (ValueError, RuntimeError) as error:
    watch.explain(TRACEBACK_S)
    watch.fail(2)
    reason = " ".join(str(error).split())[:200]
    raise UserError(
      f"the processes of this run have met, and JAX does not start on them ({reason}); start all of them anew"
    ) from error
  signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX has just installed a handler of its own


@contextlib.contextmanager
def exiting_if_unconnected(args: argparse.Namespace) -> Iterator[None]:
  """Ends this process with one line and code 2 if the block takes longer than CONNECT_S; JAX would abort."""
  timer = threading.Timer(CONNECT_S, exit_unconnected, [args])
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


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


def finish(code: int) -> None:
  """Waits until all processes have finished, and disconnects; this one is about to exit with `code`."""
  watch = CONNECTED.watch
  if watch is None:
    return
  try:
    finished = watch.finish(code, SHUTDOWN_S)
  except KeyboardInterrupt:
    code, finished = 130, False
  if not finished:
    exit_process(code)
  CONNECTED.watch = None
  try:
    jax.distributed.shutdown()
  except RuntimeError:  # another was killed on its way out, when nothing was left to do
    exit_process(code)
  watch.close()


@contextlib.contextmanager
def released_at_exit(release: Callable[[], None]) -> Iterator[None]:
  """Calls `release` if this process exits within the block because another one is lost."""
  CONNECTED.at_exit.append(release)
  try:
    yield
  finally:
    CONNECTED.at_exit.remove(release)


def exit_lost(text: str, number: int) -> NoReturn:
  """Ends this process, `number`, as another is lost; from any thread, and whatever the main thread does."""
  try:
    flushing = threading.Thread(target=flush, daemon=True)  # the main thread may hold a stream that is stuck
    flushing.start()
    flushing.join(1)
    bar = "" if number else "\n"  # ends the line of a progress bar, which process 0 alone has
    os.write(2, f"{bar}{text}\n".encode())
    for release in CONNECTED.at_exit:
      release()
  finally:
    os._exit(Preempted.EXIT_CODE)


def flush() -> None:
  sys.stdout.flush()
  sys.stderr.flush()


def tell_late(hook: Callable) -> Callable:
  """The hook for exceptions, called if no lost process ends this one first."""

  def call(*args):
    if CONNECTED.watch:
      CONNECTED.watch.explain(TRACEBACK_S)
    hook(*args)

  return call


def exit_process(code: int) -> NoReturn:
  """Exits at once, and tells the others; JAX would wait minutes for them."""
  if CONNECTED.watch:
    CONNECTED.watch.explain(0)
    CONNECTED.watch.fail(code)
  flush()
  os._exit(code)


def exit_after_error(error: BaseException) -> NoReturn:
  """Exits because of an exception that is not a person's mistake.

  It may be a consequence of the loss of another process: then the watch says which one, and ends this one.
  """
  lost = is_lost_connection(error)
  if CONNECTED.watch:
    CONNECTED.watch.explain(SILENCE_S + TRACEBACK_S if lost else TRACEBACK_S, hurry=lost)
  if lost:
    print(f"another process of this run has ended; {RESUME_HINT}", file=sys.stderr)
    exit_process(Preempted.EXIT_CODE)
  traceback.print_exception(error)
  exit_process(1)
