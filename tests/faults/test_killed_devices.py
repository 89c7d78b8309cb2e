"""A real training on two devices under kill -9, amid the steps of each stage."""

import signal

import pytest

from tests.faults.processes import (
  DEADLINE_S,
  assert_same_bits,
  log_lines,
  logged,
  running,
  until,
  write_config,
)

STEPS = 40


@pytest.mark.slow
def test_killed_twice_in_each_stage_ends_with_the_same_bits_on_two_devices(tmp_path):
  config = write_config(tmp_path, STEPS)
  with running(config, tmp_path / "unbroken", devices=2) as process:
    assert process.wait(DEADLINE_S) == 0, log_lines(tmp_path / "unbroken.log")
  for stage in ("autoencoder", "denoiser"):
    for step in (7, 23):
      with running(config, tmp_path / "killed", devices=2) as process:
        assert until(lambda stage=stage, step=step: logged(tmp_path / "killed", stage) >= step, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL, "it was killed, and had not ended before"
  with running(config, tmp_path / "killed", devices=2) as process:
    assert process.wait(DEADLINE_S) == 0, log_lines(tmp_path / "killed.log")
  assert_same_bits(tmp_path / "unbroken", tmp_path / "killed", STEPS)
