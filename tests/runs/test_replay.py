"""Logged steps are computed again to the bit, and a log that was tampered with is found out at its
first wrong line.
"""

import json
import math
import shutil

import pytest

from jldm.cli import main
from jldm.config.override import override
from jldm.core.errors import ReplayMismatchError, UserError
from jldm.runs import replay as replays
from jldm.runs.replay import replay
from jldm.runs.train import train
from jldm.storage.checkpoint import Checkpoints
from jldm.train.logging import read_rows
from jldm.train.loop import Hook
from jldm.train.preemption import Notice
from tests.configs import config, shrunk

pytestmark = pytest.mark.slow

STEPS = 6  # as tests/runs/test_train.py has, so that programs are compiled once


@pytest.fixture(scope="module")
def experiment():
  actual = shrunk(config("digits"), STEPS)
  for path, value in (("save_every_steps", 3), ("log_every_steps", 2)):
    actual = override(actual, f"denoiser.{path}", str(value))
  return actual


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
  """Lines of the denoiser at 2, 3, 4, 6, checkpoints of 3 and 6; of the autoencoder at every step, and
  of 4 and 6.
  """
  folder = tmp_path_factory.mktemp("runs") / "w"
  train(experiment, folder, devices=1)
  return folder


def tampered(workdir, folder, stage, step, **values):
  shutil.copytree(workdir, folder)
  path = folder / "metrics.jsonl"
  every = [
    row | (values if (row["stage"], row["step"]) == (stage, step) and "loss" in row else {})
    for _, row in read_rows(path)
  ]
  path.write_text("".join(json.dumps(row) + "\n" for row in every))
  return folder


def test_every_checkpoint_ends_a_line(workdir):
  lines = [
    row["step"]
    for _, row in read_rows(workdir / "metrics.jsonl")
    if row["stage"] == "denoiser" and "loss" in row
  ]
  assert lines == [2, 3, 4, 6]


def test_an_untouched_log_is_equal(workdir):
  before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
  assert replay(workdir, "denoiser", 4, 6, devices=1) == replays.Replayed(3, 6, 2)
  assert replay(workdir, "denoiser", 5, 99, devices=1) == replays.Replayed(3, 6, 1), (
    "the line of 4 is computed, not compared"
  )
  assert replay(workdir, "autoencoder", 5, 6, devices=1) == replays.Replayed(4, 6, 2)
  assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before, "nothing is written"


def test_the_first_line_that_differs_is_named(workdir, tmp_path):
  every = (
    row for _, row in read_rows(workdir / "metrics.jsonl") if (row["stage"], row["step"]) == ("denoiser", 4)
  )
  loss = next(row["loss"] for row in every if "loss" in row)
  last_bit = math.nextafter(loss, 9)
  folder = tampered(workdir, tmp_path / "w", "denoiser", 4, loss=last_bit)
  with pytest.raises(
    ReplayMismatchError, match=rf"step 4 differs: loss is logged as {last_bit!r} and computed as {loss!r}; "
  ):
    replay(folder, "denoiser", 4, 6, devices=1)
  assert replay(folder, "denoiser", 6, 6, devices=1).lines == 1


def test_what_was_left_out_of_the_log_differs_too(workdir, tmp_path):
  folder = tampered(workdir, tmp_path / "w", "autoencoder", 6, skipped=1)
  with pytest.raises(
    ReplayMismatchError, match="autoencoder step 6 differs: skipped is logged as 1 and computed as 0"
  ):
    replay(folder, "autoencoder", 5, 6, devices=1)


@pytest.mark.parametrize(
  ("steps", "message"),
  [
    (
      (1, 6),
      "denoiser steps 1:6 need a checkpoint of step 0 or before, and none is kept; steps after 3 can be "
      "replayed",
    ),
    ((3, 6), "need a checkpoint of step 2 or before"),
    ((7, 20), "no line of denoiser at steps 7:20; its lines are of steps 2 to 6"),
  ],
)
def test_ranges_that_cannot_be_replayed(workdir, steps, message):
  with pytest.raises(UserError, match=message):
    replay(workdir, "denoiser", *steps, devices=1)


@pytest.mark.parametrize("lost", ["latents", "conditions"])
def test_lost_latents_are_reported(workdir, tmp_path, lost):
  folder = tmp_path / "w"
  shutil.copytree(workdir, folder)
  shutil.rmtree(folder / lost)
  with pytest.raises(UserError, match=r"latents of .* are missing or damaged; jldm train makes them again"):
    replay(folder, "denoiser", 4, 6, devices=1)
  assert not (folder / lost).exists()


def test_exit_codes(workdir, tmp_path, capsys):
  options = ["--workdir", str(workdir), "--devices", "1"]
  assert main(["replay", *options, "--steps", "4:6"]) == 0
  record = capsys.readouterr().out
  assert (
    "denoiser: 2 lines, the last at step 6, are equal to the bit; computed from the checkpoint of step 3"
    in record
  )
  folder = tampered(workdir, tmp_path / "w", "denoiser", 6, loss=0.5)
  assert main(["replay", "--workdir", str(folder), "--devices", "1", "--steps", "4:6"]) == 4
  error = capsys.readouterr().err
  assert "denoiser step 6 differs" in error and error.count("\n") == 1
  for steps in ("9", "6:4", "a:b", "-1:2"):
    assert main(["replay", *options, f"--steps={steps}"]) == 2
    assert "expected A:B" in capsys.readouterr().err


def test_a_resumed_run_has_the_lines_of_one_that_was_not(experiment, workdir, tmp_path, monkeypatch):
  """Also where checkpoints and lines come at steps that are not multiples of each other."""
  folder = tmp_path / "w"
  shutil.copytree(workdir, folder)
  shutil.rmtree(folder / "denoiser")

  class Stop(Exception):
    pass

  def interrupt(n, state, metrics):
    if n == 5:
      raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(Notice, "hook", lambda *args: Hook(1, interrupt))
    with pytest.raises(Stop):
      train(experiment, folder, devices=1)
  with Checkpoints(folder / "denoiser" / "latest", read_only=True) as saved:
    assert saved.steps() == [3]
  train(experiment, folder, devices=1)
  lines_of = lambda path: [
    {name: value for name, value in row.items() if name != replays.THROUGHPUT}
    for _, row in read_rows(path / "metrics.jsonl")
    if "loss" in row
  ]
  assert lines_of(folder) == lines_of(workdir)
