"""A stage ends when its held-out figure no longer improves, at one step, however often it was stopped."""

import dataclasses
import json
import math
from pathlib import Path
import shutil
from unittest import mock

import numpy as np
import pytest

from jldm.cli.info import describe_workdir
from jldm.cli.train import load_config
from jldm.config import registry
from jldm.config.override import override
from jldm.core.errors import UserError
from jldm.inference.load import load
from jldm.runs.patience import best_place
from jldm.runs.train import train
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.optimizer import AdamW, Constant
from tests.trained import last_state

LAST = 13  # measured at 4, 8 and 12, never better than at 4


def changed(experiment, **fields):
  for name, text in fields.items():
    experiment = override(experiment, name.replace("__", "."), str(text))
  return experiment


@pytest.fixture(scope="module")
def still():
  """Pictures and captions, trained at a rate of 0: no measurement is better than the first."""
  with mock.patch.dict(registry.CLASSES):
    stage = load_config(str(Path(__file__).parent / "joint.py")).stages[0]
    yield dataclasses.replace(
      load_config(str(Path(__file__).parent / "joint.py")),
      stages=(
        dataclasses.replace(
          stage,
          optimizer=AdamW(schedule=Constant(peak=0.0)),
          patience=2,
          picture_every_steps=4,
          save_every_steps=4,
        ),
      ),
    )


@pytest.fixture(scope="module")
def ended(still, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("patience") / "w"
  train(still, workdir, devices=1)
  return workdir


def committed(workdir, stage="denoiser"):
  with Checkpoints(workdirs.checkpoints_folder(workdir, stage), read_only=True) as saved:
    return saved.steps()


def measured(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [line for line in lines if "held_out_loss" in line]


def test_it_ends_after_so_many_measurements_and_is_finished(still, ended, tmp_path, capfd):
  assert committed(ended) == [12, LAST]
  assert f"denoiser: Diffusion, at step {LAST} of 40, where its patience ended it" in list(
    describe_workdir(ended, statistics=False)
  )
  assert [json.loads(line)["step"] for line in measured(ended)] == [4, 8, 12, LAST]
  copy = shutil.copytree(ended, tmp_path / "w")
  train(still, copy, devices=1)
  assert (copy / "metrics.jsonl").read_bytes() == (ended / "metrics.jsonl").read_bytes()
  load(copy)


@pytest.mark.parametrize("unmeasured", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_stopped_before_its_last_step_it_ends_at_the_same(still, ended, tmp_path, unmeasured):
  """Also if the kill came between the checkpoint and the decisive measurement."""
  copy = shutil.copytree(ended, tmp_path / "w")
  for path in (copy / "denoiser" / "latest").glob(f"{LAST}*"):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  if unmeasured:
    kept = [
      line
      for line in (copy / "metrics.jsonl").open()
      if line not in {each + "\n" for each in measured(ended)[2:]}
    ]
    (copy / "metrics.jsonl").write_text("".join(kept))
  train(still, copy, devices=1)
  assert committed(copy) == [12, LAST] and measured(copy) == measured(ended)
  for name, value in last_state(ended, "denoiser", LAST).items():
    np.testing.assert_array_equal(value, last_state(copy, "denoiser", LAST)[name], err_msg=name)


@pytest.mark.slow
def test_with_more_patience_an_ended_stage_goes_on(still, ended, tmp_path):
  copy = shutil.copytree(ended, tmp_path / "w")
  train(changed(still, denoiser__patience=0), copy, devices=1)
  assert committed(copy)[-1] == 40


@pytest.mark.slow
def test_an_autoencoder_ends_by_psnr_and_its_codec_is_used(experiment, tmp_path):
  still = changed(
    experiment,
    autoencoder__optimizer__schedule__peak=0.0,
    autoencoder__patience=1,
    autoencoder__picture_every_steps=1,
  )
  train(still, tmp_path / "w", devices=1)
  lines = (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
  figures = [row["held_out_psnr"] for row in map(json.loads, lines) if "held_out_psnr" in row]
  first = next(n for n in range(1, 6) if max(figures[:n]) >= figures[n])  # averaging may round upwards before
  assert committed(tmp_path / "w", "autoencoder")[-1] == first + 2 <= 5
  assert committed(tmp_path / "w")[-1] == 6
  load(tmp_path / "w")


def test_the_first_of_the_best_counts_and_what_is_not_finite_never():
  values = {4: 3.0, 8: 1.0, 12: 1.0, 16: 2.0}
  assert best_place(values, lower=True) == 1 and best_place(values, lower=False) == 0
  assert best_place({4: math.nan, 8: -math.inf, 12: 5.0}, lower=True) == 2
  assert best_place({}, lower=True) == 0


def test_what_cannot_end_it_is_reported_before_training(experiment, tmp_path):
  wrong = changed(experiment, denoiser__patience=2, data__held_out="train")
  with pytest.raises(UserError, match=r"denoiser.patience=2, .* both 'train'.*set it to 0"):
    train(wrong, tmp_path / "w", devices=1)
  every = changed(experiment, denoiser__keep_every_steps=3)
  with pytest.raises(UserError, match=r"keep_every_steps=3 is not a multiple of .*=2; expected 0, or .* 20"):
    train(every, tmp_path / "w", devices=1)
  assert not (tmp_path / "w").exists()
