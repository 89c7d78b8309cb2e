"""A training with balanced classes: told, and computed again from a checkpoint to the bit."""

import dataclasses
import shutil

import pytest

from jldm.runs.replay import replay
from jldm.runs.train import train
from jldm.storage import workdir as workdirs
from tests.trained import STEPS


@pytest.mark.slow
def test_classes_are_reported_and_lines_replayed(experiment, unbroken, tmp_path, capsys):
  """On the latents that were encoded without it."""
  balanced = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, balance=True))
  workdirs.claim_workdir(tmp_path / "w", balanced)
  for part in ("autoencoder", "latents", "conditions"):
    shutil.copytree(unbroken / part, tmp_path / "w" / part)
  before = {path for path in (tmp_path / "w" / "latents").rglob("*")}
  train(balanced, tmp_path / "w", devices=1)
  assert "denoiser: classes are drawn equally often, of 0 2, 1 2, " in capsys.readouterr().out
  assert {path for path in (tmp_path / "w" / "latents").rglob("*")} == before
  assert replay(tmp_path / "w", "denoiser", STEPS - 1, STEPS, devices=1).lines == 2
