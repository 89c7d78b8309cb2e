"""kill -9 of a real training process, twice, and the same command again: the same bits as a run that was never killed."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.configs import ROOT

STEPS = 40
CONFIG = f"""
import dataclasses
from tests.configs import config, shrunk

def experiment():
  return shrunk(config("digits"), {STEPS})
"""
DEADLINE_S = 300


def start(folder: Path, name: str) -> subprocess.Popen:
  """The training command, as a process of its own on two fake devices."""
  environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
  command = [sys.executable, "train.py", "--config", str(folder / "config.py"), "--workdir", str(folder / name)]
  with (folder / f"{name}.log").open("a") as log:
    return subprocess.Popen([*command, "--devices", "2"], cwd=ROOT, env=environment, stdout=log, stderr=log)


def kill_after_step(process: subprocess.Popen, workdir: Path, stage: str, step: int) -> None:
  """Kills the process once its log shows that it is past a step."""
  wanted, end = [f'"stage": "{stage}", "step": {n},' for n in range(step, STEPS)], time.monotonic() + DEADLINE_S
  while time.monotonic() < end and process.poll() is None:
    lines = (workdir / "metrics.jsonl").read_text() if (workdir / "metrics.jsonl").exists() else ""
    if any(line in lines for line in wanted):
      process.send_signal(signal.SIGKILL)
      break
    time.sleep(0.02)
  assert process.wait(DEADLINE_S) == -signal.SIGKILL, "it was killed, and had not ended before"


def last_state(workdir: Path) -> dict[str, np.ndarray]:
  arrays = {}
  for folder in sorted(workdir.glob(f"*/latest/{STEPS}/*")):
    if folder.is_dir():
      tree = ocp.PyTreeCheckpointer().restore(folder)
      arrays |= {f"{folder}{jax.tree_util.keystr(path)}".removeprefix(str(workdir)): np.asarray(leaf)
                 for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
  return arrays


@pytest.mark.slow
def test_killed_twice_in_each_stage_ends_with_the_same_bits(tmp_path):
  (tmp_path / "config.py").write_text(CONFIG)
  assert start(tmp_path, "unbroken").wait(DEADLINE_S) == 0, (tmp_path / "unbroken.log").read_text()
  for stage in ("autoencoder", "denoiser"):
    for step in (7, 23):
      kill_after_step(start(tmp_path, "killed"), tmp_path / "killed", stage, step)
  assert start(tmp_path, "killed").wait(DEADLINE_S) == 0, (tmp_path / "killed.log").read_text()
  unbroken, killed = last_state(tmp_path / "unbroken"), last_state(tmp_path / "killed")
  assert unbroken.keys() == killed.keys() and len(unbroken) > 150
  for name, value in unbroken.items():
    np.testing.assert_array_equal(value, killed[name], err_msg=name)
