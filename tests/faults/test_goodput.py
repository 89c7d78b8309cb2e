"""The seconds of a real training by part, against a clock outside it."""

import signal
import time

import pytest

from jldm.train.goodput import PARTS
from jldm.train.logging import read_rows
from tests.faults.processes import DEADLINE_S, log_lines, logged, running, until, write_config

STEPS = 12


@pytest.mark.slow
def test_the_parts_add_up_to_the_wall_clock_and_what_a_kill_cost_is_lost(tmp_path):
  config = write_config(tmp_path, STEPS, denoiser__save_every_steps=5, denoiser__picture_every_steps=8)
  workdir, path = tmp_path / "w", tmp_path / "w" / "metrics.jsonl"
  with running(config, workdir) as process:
    assert until(lambda: logged(workdir, "denoiser") >= 8, process)  # the picture after it takes a second
    process.send_signal(signal.SIGKILL)
    assert process.wait(DEADLINE_S) == -signal.SIGKILL
  began = time.time()
  with running(config, workdir) as process:
    assert process.wait(DEADLINE_S) == 0, log_lines(tmp_path / "w.log")
  wall = path.stat().st_mtime - began
  *_, (_, last) = read_rows(path)
  assert (last["stage"], last["step"]) == ("denoiser", STEPS) and "seconds" in last
  assert abs(last["seconds"] - wall) < 0.01 * wall
  assert abs(sum(last[f"seconds_{part}"] for part in PARTS) - wall) < 0.01 * wall
  for part in ("start", "compile", "restore", "data", "step", "lost", "save", "encode", "evaluation"):
    assert last[f"seconds_{part}"] > 0, part
