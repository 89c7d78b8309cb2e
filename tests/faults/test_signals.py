"""SIGTERM and a second trainer: what is committed, what is said, the exit code, and the same bits in the
end.
"""

import os
import random
import signal
import socket
import time

import pytest

from jldm.cli.train import load_config
from jldm.core.errors import RESUME_HINT, Preempted
from jldm.runs import latents, previews
from jldm.runs.train import train
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.logging import Log
from jldm.train.preemption import GRACE_S
from tests.configs import STAGES
from tests.faults.processes import (
  DEADLINE_S,
  assert_same_bits,
  log_lines,
  logged,
  running,
  until,
  write_config,
)

STEPS = 12
EVERY = dict(save_every_steps=5, picture_every_steps=4)
CHANGES = {f"{stage}__{name}": value for stage in STAGES for name, value in EVERY.items()}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return write_config(tmp_path_factory.mktemp("config"), STEPS, **CHANGES)


@pytest.fixture(scope="module")
def unbroken(config):
  """By a process of its own: one that has eight devices, as this one, rounds otherwise even on one of
  them.
  """
  workdir = config.parent / "unbroken"
  with running(config, workdir) as process:
    assert process.wait(DEADLINE_S) == 0, log_lines(workdir.with_suffix(".log"))
  return workdir


def committed(workdir, stage) -> list[int]:
  with Checkpoints(workdirs.checkpoints_folder(workdir, stage), read_only=True) as saved:
    return saved.steps()


@pytest.mark.slow
def test_wherever_the_notice_comes_the_run_goes_on_to_the_same_bits(config, tmp_path, monkeypatch):
  """In turn, in one workdir: in a step, an evaluation, the last evaluation, the encoding, between
  stages, in a picture.
  """
  experiment, workdir = load_config(str(config)), tmp_path / "w"
  train(experiment, tmp_path / "unbroken", devices=1)

  def at(where, name, message, when=lambda *args: True):
    """Runs until the notice, which comes as `where.name` is called."""
    original, sent = getattr(where, name), []

    def call(*args, **options):
      if when(*args) and not sent:
        sent.append(os.kill(os.getpid(), signal.SIGTERM))
        time.sleep(0.2)
      return original(*args, **options)

    with monkeypatch.context() as patch:
      patch.setattr(where, name, call)
      with pytest.raises(Preempted, match=message):
        train(experiment, workdir, devices=1)
    assert not (workdir / "lock").exists()

  at(Log, "write", "at autoencoder step 3", lambda log, step, *_: step == 3)
  assert committed(workdir, "autoencoder") == [3], "not a step that is saved anyway"
  at(previews, "measure_reconstructions", "at autoencoder step 4")
  assert committed(workdir, "autoencoder") == [3, 4]
  at(Log, "write", "by SIGTERM; the", lambda log, step, *_: step == STEPS)
  assert committed(workdir, "autoencoder") == [5, 10], "the last step waits for the codec"
  at(latents.array_cache, "write_cache", "by SIGTERM; the")
  assert committed(workdir, "autoencoder") == [5, 10] and not list((workdir / "latents").glob("*/*"))
  assert not (workdir / "conditions").exists()
  at(latents.codecs, "measure_statistics", "by SIGTERM; the")
  assert committed(workdir, "autoencoder") == [10, STEPS] and not (workdir / "denoiser").exists()
  at(latents.array_cache, "write_cache", "by SIGTERM; the")
  assert not list((workdir / "conditions").glob("*/*")) and not committed(workdir, "denoiser")
  at(previews, "sample_sheet", "at denoiser step 4")
  assert committed(workdir, "denoiser") == [4]
  train(experiment, workdir, devices=1)
  assert_same_bits(tmp_path / "unbroken", workdir, STEPS)


@pytest.mark.slow
def test_a_second_trainer_is_refused_and_a_killed_one_taken_over_from(config, unbroken):
  workdir, log = config.parent / "locked", config.parent / "second.log"
  with running(config, workdir) as process:
    assert until(lambda: logged(workdir, "autoencoder") >= 2, process)
    process.send_signal(signal.SIGSTOP)  # so that it does not end meanwhile
    with running(config, workdir, log=log) as second:
      assert second.wait(DEADLINE_S) == 2
    (line,) = log_lines(log)
    assert f"is in training by pid {process.pid} on {socket.gethostname()!r}" in line
  with running(config, workdir) as third:
    assert third.wait(DEADLINE_S) == 0
  message = f"{workdir / 'lock'} is of pid {process.pid}, which has ended; it is taken over\n"
  assert message in workdir.with_suffix(".log").read_text()
  assert_same_bits(unbroken, workdir, STEPS)


@pytest.mark.slow
def test_sigterm_to_the_command(config, unbroken):
  workdir = config.parent / "terminated"
  with running(config, workdir) as process:
    assert until(lambda: logged(workdir, "denoiser") >= 2, process)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(DEADLINE_S) == 75, log_lines(workdir.with_suffix(".log"))
    assert time.monotonic() - began < GRACE_S
  step = logged(workdir, "denoiser")
  assert (
    log_lines(workdir.with_suffix(".log"))[-1] == f"stopped by SIGTERM at denoiser step {step}; {RESUME_HINT}"
  )
  assert committed(workdir, "denoiser")[-1] == step < STEPS
  with running(config, workdir) as process:
    assert process.wait(DEADLINE_S) == 0, log_lines(workdir.with_suffix(".log"))
  assert_same_bits(unbroken, workdir, STEPS)


# What a script runs in the background ignores SIGINT, and so would what this starts.
HEEDS_SIGINT = ("env", "--default-signal=INT")


@pytest.mark.slow
def test_ctrl_c_at_random_moments_is_never_lost_and_never_a_traceback(config, unbroken):
  """Within callbacks of JAX too, of which Python's own handler loses some: the process ends every time."""
  workdir, draw = config.parent / "interrupted", random.Random(0)
  log, before = workdir.with_suffix(".log"), 0
  for stage in (None, "autoencoder", None, "denoiser", "denoiser"):
    with running(config, workdir, prefix=HEEDS_SIGINT) as process:
      step = logged(workdir, stage) + draw.randint(1, 3) if stage else 0
      if until(lambda stage=stage, step=step: logged(workdir, stage) >= step if stage else True, process):
        time.sleep(draw.uniform(1, 4) if stage is None else draw.uniform(0, 0.2))
        process.send_signal(signal.SIGINT)
      code = process.wait(DEADLINE_S)
    text, before = log.read_text()[before:], len(log.read_text())
    assert code in (0, 130), text
    assert "Traceback" not in text and "Exception ignored" not in text
    assert code == 0 or any(line.startswith("interrupted") for line in text.splitlines())
  with running(config, workdir) as process:
    assert process.wait(DEADLINE_S) == 0
  assert_same_bits(unbroken, workdir, STEPS)
