"""SIGTERM and a second trainer: what is committed, what is said, the exit code, and the same bits in the end."""

import os
import signal
import socket
import time

import pytest

from jldm import stages, workdir as workdirs
from jldm.checkpoint import Checkpoints
from jldm.core.errors import Preempted
from jldm.train.preemption import GRACE_S
from tests.faults.processes import DEADLINE_S, assert_same_bits, logged, running, said, until, write_config

STEPS = 12
EVERY = dict(save_every_steps=5, picture_every_steps=4)
CHANGES = {f"{stage}__{name}": value for stage in workdirs.STAGES for name, value in EVERY.items()}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return write_config(tmp_path_factory.mktemp("config"), STEPS, **CHANGES)


@pytest.fixture(scope="module")
def unbroken(config):
  from jldm.cli.train import load_config
  workdir = config.parent / "unbroken"
  stages.train(load_config(str(config)), workdir, devices=1)
  return workdir


def committed(workdir, stage) -> list[int]:
  with Checkpoints(workdirs.checkpoints(workdir, stage), read_only=True) as saved:
    return saved.steps()


def sigterm(run=None):
  """The signal to this process, seen by its notice before anything else happens."""
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(0.2)


@pytest.mark.slow
def test_wherever_the_notice_comes_the_run_goes_on_to_the_same_bits(config, unbroken, tmp_path, monkeypatch):
  """In turn, in one workdir: in a step, an evaluation, the last evaluation, the encoding, between stages, in a picture."""
  from jldm.cli.train import load_config
  experiment, workdir = load_config(str(config)), tmp_path / "w"

  def at(where, name, told, when=lambda *args: True):
    """Runs until the notice, which comes as `where.name` is called."""
    original = getattr(where, name)

    def call(*args, **options):
      if when(*args):
        sigterm()
      return original(*args, **options)

    with monkeypatch.context() as patch:
      patch.setattr(where, name, call)
      with pytest.raises(Preempted, match=told):
        stages.train(experiment, workdir, devices=1)
    assert not (workdir / "lock").exists()

  at(stages.Log, "write", "at autoencoder step 3", lambda log, step, *_: step == 3)
  assert committed(workdir, "autoencoder") == [3], "not a step that is saved anyway"
  at(stages, "reconstruction", "at autoencoder step 4")
  assert committed(workdir, "autoencoder") == [3, 4]
  at(stages.Log, "write", "by SIGTERM; the", lambda log, step, *_: step == STEPS)
  assert committed(workdir, "autoencoder") == [5, 10], "the last step waits for the codec"
  at(stages.cached_latents, "write_like", "by SIGTERM; the")
  assert committed(workdir, "autoencoder") == [5, 10] and not list((workdir / "latents").iterdir())
  at(stages.codecs, "measure", "by SIGTERM; the")
  assert committed(workdir, "autoencoder") == [10, STEPS] and not (workdir / "denoiser").exists()
  at(stages, "sampled", "at denoiser step 4")
  assert committed(workdir, "denoiser") == [4]
  stages.train(experiment, workdir, devices=1)
  assert_same_bits(unbroken, workdir, STEPS)


@pytest.mark.slow
def test_the_command_commits_and_ends_with_75_and_a_second_trainer_is_refused(config, unbroken):
  workdir = config.parent / "stopped"
  with running(config, workdir) as process:
    assert until(lambda: logged(workdir, "autoencoder") >= 2, process)
    second = workdir.with_name("second")
    second.symlink_to(workdir)
    with running(config, second) as other:
      assert other.wait(DEADLINE_S) == 2 or process.poll() is not None
    if process.poll() is None:
      (line,) = said(second)
      assert f"is in training by pid {process.pid} on {socket.gethostname()!r}" in line
  workdir.with_name("second.log").unlink()


@pytest.mark.slow
def test_sigterm_to_the_command(config, unbroken):
  workdir = config.parent / "terminated"
  with running(config, workdir) as process:
    assert until(lambda: logged(workdir, "denoiser") >= 2, process)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(DEADLINE_S) == 75, said(workdir)
    assert time.monotonic() - began < GRACE_S
  step = logged(workdir, "denoiser")
  assert said(workdir)[-1] == f"stopped by SIGTERM at denoiser step {step}; the same command goes on from the last checkpoint"
  assert committed(workdir, "denoiser")[-1] == step < STEPS
  with running(config, workdir) as process:
    assert process.wait(DEADLINE_S) == 0, said(workdir)
  assert_same_bits(unbroken, workdir, STEPS)
