"""The mistakes of `jldm train`: one line, and nothing written."""

import subprocess
import sys
import time

import pytest

from jldm.cli import main
from tests.configs import ROOT

DIGITS = str(ROOT / "configs" / "digits.py")


@pytest.mark.parametrize(
  "options, message",
  [
    (["--config", "configs/digit.py"], "config 'configs/digit.py' does not exist; there are"),
    (["--config", "README.md"], "README.md"),
    (["--config", DIGITS, "--set", "denoiser.stpes=5"], "Stage has no field 'stpes'; did you mean 'steps'?"),
    (["--config", DIGITS, "--set", "denoiser.steps=five"], "denoiser.steps: expected int such as"),
    (["--config", DIGITS, "--set", "denoiser.steps"], "expected PATH=VALUE"),
    (
      ["--config", DIGITS, "--set", "denoiser.objective.parametrization.prediction_type=epps"],
      "'epps'; expected one of",
    ),
    (["--config", DIGITS, "--set", "data.data_dir=nowhere"], "jldm prepare digits"),
  ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, options, message):
  monkeypatch.chdir(ROOT)
  assert main(["train", *options, "--workdir", str(tmp_path / "w")]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1
  assert not (tmp_path / "w").exists()


def test_a_config_without_an_experiment(tmp_path, capsys):
  (tmp_path / "empty.py").write_text("x = 1\n")
  assert main(["train", "--config", str(tmp_path / "empty.py"), "--workdir", str(tmp_path / "w")]) == 2
  assert "no experiment()" in capsys.readouterr().err


def test_an_unwritable_workdir(tmp_path, capsys):
  (tmp_path / "file").write_text("in the way")
  code = main(["train", "--config", DIGITS, "--workdir", str(tmp_path / "file" / "w")])
  error = capsys.readouterr().err
  assert code == 2 and "choose another --workdir" in error and error.count("\n") == 1


def test_a_missing_data_set_is_reported_within_seconds(tmp_path):
  """The whole command, as a person runs it, without a network."""
  began = time.monotonic()
  command = [
    sys.executable,
    "train.py",
    "--config",
    DIGITS,
    "--workdir",
    str(tmp_path / "w"),
    "--set",
    "data.name=mnist",
  ]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert done.returncode == 2 and "mnist" in done.stderr and done.stderr.count("\n") == 1
  assert time.monotonic() - began < 30, "200 s is what TFDS takes to give up on a network"
