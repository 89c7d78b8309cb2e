"""Real trainings under kill -9: at moments of every kind on one device, and amid the steps of each stage on
two.
"""

import collections
import signal

import pytest

from tests.faults.kills import kills
from tests.faults.processes import DEADLINE_S, assert_same_bits, logged, running, said, until, write_config

COUNT = 20
STEPS = 40


@pytest.mark.slow
def test_twenty_kills_lose_no_checkpoint_and_no_bit(tmp_path):
  counts = collections.Counter(kind for kind, _, _ in kills(tmp_path, COUNT, seed=0))
  assert sum(counts.values()) == COUNT and len(counts) > 4, counts


@pytest.mark.slow
def test_killed_twice_in_each_stage_ends_with_the_same_bits_on_two_devices(tmp_path):
  config = write_config(tmp_path, STEPS)
  with running(config, tmp_path / "unbroken", devices=2) as process:
    assert process.wait(DEADLINE_S) == 0, said(tmp_path / "unbroken.log")
  for stage in ("autoencoder", "denoiser"):
    for step in (7, 23):
      with running(config, tmp_path / "killed", devices=2) as process:
        assert until(lambda stage=stage, step=step: logged(tmp_path / "killed", stage) >= step, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait(DEADLINE_S) == -signal.SIGKILL, "it was killed, and had not ended before"
  with running(config, tmp_path / "killed", devices=2) as process:
    assert process.wait(DEADLINE_S) == 0, said(tmp_path / "killed.log")
  assert_same_bits(tmp_path / "unbroken", tmp_path / "killed", STEPS)
