"""A run that begins from a checkpoint of another comes to the bits that the other comes to."""

import json
import shutil

import pytest

from jldm.cli import main
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from tests.faults.processes import write_config
from tests.trained import STEPS, assert_same_end, last_state


def committed(workdir, stage):
  return Checkpoints(workdirs.checkpoints_folder(workdir, stage), read_only=True).steps()


def lines(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  timed = lambda row: "seconds" in row
  return [
    {name: value for name, value in row.items() if name != "images_per_second"}
    for row in rows
    if not timed(row)
  ]


@pytest.fixture
def command(tmp_path, unbroken, monkeypatch):
  config = write_config(tmp_path, STEPS)
  workdir = tmp_path / "deep" / "w"

  def call(step=4, source=unbroken, more=()):
    options = ["--config", str(config), "--workdir", str(workdir), "--devices", "1"]
    return main(["train", *options, "--from", str(source), "--step", str(step), *more])

  return call, workdir


@pytest.mark.slow
def test_it_comes_to_the_same_bits_and_goes_on_by_the_same_command(command, unbroken, capsys):
  call, workdir = command
  before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")}
  assert call() == 0
  assert f"begins from denoiser step 4 of {unbroken}" in capsys.readouterr().out
  assert committed(workdir, "denoiser") == [4, STEPS] and lines(workdir) == lines(unbroken)
  assert_same_end(unbroken, workdir)
  for path in workdirs.checkpoints_folder(workdir, "denoiser").glob(f"{STEPS}*"):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert call() == 0
  assert_same_end(unbroken, workdir)
  assert before == {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")}
  assert call(step=2) == 2 and "did not begin from denoiser step 2" in capsys.readouterr().err


@pytest.mark.slow
def test_with_another_rate_only_what_comes_after_differs(command, unbroken, capsys):
  call, workdir = command
  assert call(more=("--set", "denoiser.optimizer.schedule.peak=1e-2")) == 0
  assert "denoiser.optimizer.schedule.peak: " in capsys.readouterr().out
  ours, theirs = last_state(workdir, "denoiser"), last_state(unbroken, "denoiser")
  assert any((ours[name] != theirs[name]).any() for name in ours)
  assert committed(unbroken, "denoiser")[-1] == STEPS


@pytest.mark.parametrize(
  ("options", "words"),
  [
    (dict(step=3), "has no committed step 3; it has 4, 6"),
    (dict(step=6, more=("--stage", "other")), "there is no stage 'other'"),
    (dict(source="nowhere"), "'nowhere' does not exist"),
    (dict(more=("--set", "denoiser.batch_size=4")), "at denoiser step 4' holds another experiment"),
  ],
)
def test_mistakes_are_one_line_and_leave_nothing(command, capsys, options, words):
  call, workdir = command
  assert call(**options) == 2
  error = capsys.readouterr().err
  assert words in error and error.count("\n") == 1 and not list(workdir.parent.glob(".*"))
  assert not workdir.exists()


def test_a_step_alone_is_refused(tmp_path, capsys):
  config = write_config(tmp_path, STEPS)
  for options, words in (
    (["--step", "4"], "--step 4 without --from; expected --from W --step N, or neither"),
    (["--from", "W"], "--from W without --step; expected --from W --step N, or neither"),
  ):
    assert main(["train", "--config", str(config), "--workdir", str(tmp_path / "w"), *options]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "w").exists()
