"""Real training processes of a tiny experiment, with signals and deadlines; only what was started here
is ever killed.
"""

import contextlib
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from jldm.storage import workdir as workdirs
from tests.compiling import FLAGS
from tests.configs import ROOT, STAGES

DEADLINE_S = 300
CONFIG = """
from jldm.config.override import override
from tests.configs import config, shrunk

def experiment():
  found = shrunk(config("digits"), {steps})
  for path, value in {changes!r}.items():
    found = override(found, path, str(value))
  return found
"""


def write_config(folder: Path, steps: int, **changes) -> Path:
  """A config file; `denoiser__save_every_steps=5` changes denoiser.save_every_steps."""
  path = folder / "config.py"
  path.write_text(
    CONFIG.format(steps=steps, changes={name.replace("__", "."): value for name, value in changes.items()})
  )
  return path


def start(
  config: Path, workdir: Path, devices: int = 1, log: Path | None = None, prefix: tuple = (), more: tuple = ()
) -> subprocess.Popen:
  """`train.py` as a process of its own, whose output is added to a file, by default one beside the
  workdir.
  """
  environment = os.environ | {
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count={devices}",
  }
  command = [
    *prefix,
    sys.executable,
    "train.py",
    "--config",
    str(config),
    "--workdir",
    str(workdir),
    "--devices",
    str(devices),
  ]
  with (log or workdir.with_suffix(".log")).open("ab") as file:
    return subprocess.Popen(
      [*command, *more], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
    )


def free_port() -> int:
  with socket.socket() as actual:
    actual.bind(("127.0.0.1", 0))
    return actual.getsockname()[1]


def log_lines(log: Path) -> list[str]:
  """The lines that a training printed besides its progress bars."""
  lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
  return [
    line
    for line in lines
    if line.strip() and "step/s" not in line and "s/step" not in line and "?step" not in line
  ]


@contextlib.contextmanager
def running(config: Path, workdir: Path, **options):
  """A training that does not outlive the block."""
  process = start(config, workdir, **options)
  try:
    yield process
  finally:
    if process.poll() is None:
      process.send_signal(signal.SIGKILL)
    process.wait(DEADLINE_S)


@contextlib.contextmanager
def both(config: Path, workdir: Path, others: Path | None = None):
  """Two processes of a training, and their logs; `others` is the workdir that the second is given."""
  port = free_port()
  with contextlib.ExitStack() as stack:
    logs = [workdir.with_suffix(f".{process}.log") for process in range(2)]
    for log in logs:
      log.unlink(missing_ok=True)
    yield (
      [
        stack.enter_context(
          running(
            config,
            (others or workdir) if process else workdir,
            log=log,
            more=("--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(process)),
          )
        )
        for process, log in enumerate(logs)
      ],
      logs,
    )


def until(
  condition, process: subprocess.Popen, poll_s: float = 0.002, deadline_s: float = DEADLINE_S
) -> bool:
  """Whether `condition()` came true while the process ran."""
  end = time.monotonic() + deadline_s
  while time.monotonic() < end:
    if condition():
      return True
    if process.poll() is not None:
      return False
    time.sleep(poll_s)
  raise TimeoutError(f"nothing for {deadline_s} s")


def logged(workdir: Path, stage: str) -> int:
  """The last step of a stage that metrics.jsonl has."""
  path = workdir / "metrics.jsonl"
  text = path.read_text(errors="replace") if path.exists() else ""
  return max(
    (
      int(line.split('"step": ')[1].split(",")[0].rstrip("}"))
      for line in text.splitlines()
      if line.startswith(f'{{"stage": "{stage}", "step": ') and line.endswith("}")
    ),
    default=0,
  )


def restored(folder: Path) -> dict[str, np.ndarray]:
  """Every array of a checkpoint, read by Orbax alone."""
  arrays = {}
  for item in sorted(path for path in folder.iterdir() if path.is_dir()):
    reader = ocp.PyTreeCheckpointHandler()
    whole = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), reader.metadata(item).tree)
    leaves = jax.tree_util.tree_leaves_with_path(
      reader.restore(item, args=ocp.args.PyTreeRestore(restore_args=whole))
    )
    arrays |= {f"{item.name}{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}
  return arrays


def assert_same_bits(a: Path, b: Path, steps: int) -> None:
  """The last checkpoints of both stages."""
  for stage in STAGES:
    left, right = (restored(workdirs.checkpoints_folder(workdir, stage) / str(steps)) for workdir in (a, b))
    assert left.keys() == right.keys() and len(left) > 50
    for name, value in left.items():
      np.testing.assert_array_equal(value, right[name], err_msg=f"{stage} {name}")
