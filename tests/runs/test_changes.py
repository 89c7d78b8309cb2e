"""A run that goes on with other settings: what may change, to the numbers that are right."""

import dataclasses
import json
import shutil

import numpy as np
from PIL import Image
import pytest

from jldm.cli import main
from jldm.config.override import override
from jldm.core.errors import NonFiniteError, UserError
from jldm.data.tfds import ImageData
from jldm.inference.load import load
from jldm.runs.fork import fork
from jldm.runs.replay import replay
from jldm.runs.stage import last_good, step_back
from jldm.runs.train import train
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from tests.trained import STEPS, assert_same_end, last_state


def committed(workdir, stage):
  with Checkpoints(workdirs.checkpoints_folder(workdir, stage), read_only=True) as saved:
    return saved.steps()


def rows(workdir, stage):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {row["step"]: row for row in lines if row["stage"] == stage and "loss" in row}


@pytest.mark.slow
def test_a_finished_stage_of_a_constant_rate_trains_further_to_the_bits_of_one_training(
  experiment, unbroken, tmp_path, capsys
):
  constant = override(experiment, "denoiser.optimizer.schedule", "Constant(peak=1e-3, warmup_steps=2)")
  workdir = shutil.copytree(unbroken, tmp_path / "w")
  shutil.rmtree(workdir / "denoiser")
  whole = shutil.copytree(workdir, tmp_path / "whole")
  train(constant, workdir, devices=1)
  longer = override(constant, "denoiser.steps", str(STEPS + 2))
  capsys.readouterr()
  train(longer, workdir, devices=1)
  assert f"denoiser.steps: {STEPS} -> {STEPS + 2}" in capsys.readouterr().out
  assert workdirs.read_experiment(workdir) == longer
  train(longer, whole, devices=1)
  for name, value in last_state(whole, "denoiser", STEPS + 2).items():
    np.testing.assert_array_equal(value, last_state(workdir, "denoiser", STEPS + 2)[name], err_msg=name)


def without_last_step(unbroken, workdir):
  """A copy of the run, stopped after its last checkpoint but one."""
  shutil.copytree(unbroken, workdir)
  for path in (workdir / "denoiser" / "latest").glob(f"{STEPS}*"):
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  return workdir, max(committed(workdir, "denoiser"))


def test_after_a_stop_by_nan_the_line_names_the_way_one_checkpoint_back(experiment, unbroken, tmp_path):
  with Checkpoints(workdirs.checkpoints_folder(unbroken, "denoiser"), read_only=True) as saved:
    *_, before, last = saved.steps()
    assert last_good(saved) == f"last good checkpoint: step {last}"
    text = step_back(unbroken, saved)
  assert text.endswith(f"--workdir NEW --from {unbroken} --step {before}")
  fork(experiment, tmp_path / "NEW", unbroken, before)
  assert committed(tmp_path / "NEW", "denoiser") == [before]
  with Checkpoints(workdirs.checkpoints_folder(tmp_path / "NEW", "denoiser"), read_only=True) as saved:
    assert step_back(unbroken, saved) == "", "there is none before"


@pytest.mark.slow
def test_after_a_stop_by_nan_a_lower_rate_goes_on_from_the_last_good_checkpoint(
  experiment, unbroken, tmp_path, capsys
):
  """With the rate that it had before, to the bits of a run that never was steep."""
  workdir, last = without_last_step(unbroken, tmp_path / "w")
  steep = override(experiment, "denoiser.optimizer.schedule.peak", "1e6")
  steep = override(override(steep, "denoiser.steps", "40"), "denoiser.save_every_steps", "100")
  with pytest.raises(NonFiniteError, match=rf"step {last}; .*lower denoiser.optimizer.schedule.peak"):
    train(steep, workdir, devices=1)
  assert committed(workdir, "denoiser")[-1] == last
  capsys.readouterr()
  train(experiment, workdir, devices=1)
  assert "denoiser.optimizer.schedule.peak: 1000000.0 -> " in capsys.readouterr().out
  with pytest.raises(UserError, match=rf"up to step {last} with another denoiser.*; steps after {last} can"):
    replay(workdir, "denoiser", last, STEPS, devices=1)
  assert replay(workdir, "denoiser", last + 1, STEPS, devices=1).lines == STEPS - last
  assert_same_end(unbroken, workdir)
  assert sorted(rows(workdir, "denoiser")) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_what_changes_no_step_leaves_the_bits(experiment, unbroken, tmp_path):
  """Other intervals of lines and checkpoints, another sampling: resumed amid the denoiser."""
  workdir, _ = without_last_step(unbroken, tmp_path / "w")
  other = override(experiment, "denoiser.log_every_steps", "3")
  other = override(override(other, "denoiser.save_every_steps", "5"), "sampling.steps", "3")
  train(other, workdir, devices=1)
  assert_same_end(unbroken, workdir)
  assert load(workdir)[0].sampling.steps == 3


def pictures(folder, count, shift):
  """Pictures of two classes: bright on the left, or on the right; `shift` exchanges them."""
  for kind in range(2):
    (folder / "ab"[(kind + shift) % 2]).mkdir(parents=True, exist_ok=True)
    for number in range(count // 2):
      pixels = np.full((8, 8), 30 + number, np.uint8)
      pixels[:, 4 * kind : 4 * kind + 4] = 200
      Image.fromarray(pixels).save(folder / "ab"[(kind + shift) % 2] / f"{number}.png")


def prepared(tmp_path, name, count, shift, data_dir="data"):
  pictures(tmp_path / name, count, shift)
  shutil.rmtree(tmp_path / data_dir / "own", ignore_errors=True)
  command = ["prepare", "folder", "--source", str(tmp_path / name), "--name", "own"]
  assert main([*command, "--data-dir", str(tmp_path / data_dir)]) == 0


@pytest.fixture(scope="module")
def on_folder(experiment, tmp_path_factory):
  """An autoencoder trained on 24 pictures, the denoiser not begun."""
  tmp_path = tmp_path_factory.mktemp("folder")
  prepared(tmp_path, "first", 24, 0)
  data = ImageData(
    name="own",
    data_dir=str(tmp_path / "data"),
    train="train[:20]",
    held_out="train[20:]",
    height=8,
    width=8,
    classes=2,
  )
  experiment = override(experiment, "denoiser.objective.conditioners", "(ClassLabel(classes=2),)")
  experiment = override(experiment, "denoiser.objective.network.classes", "2")
  experiment = override(experiment, "denoiser.objective.network.patch", "1")
  experiment = dataclasses.replace(experiment, data=data)
  train(experiment, tmp_path / "w", ("autoencoder",), devices=1)
  return experiment, tmp_path


@pytest.mark.parametrize(
  ("count", "shift", "words"),
  [
    pytest.param(48, 1, "data.held_out.examples: 4 -> 28", marks=pytest.mark.slow),
    (24, 1, "data.train.digest"),
    pytest.param(24, 0, None, marks=pytest.mark.slow),
  ],
)
def test_data_prepared_anew_between_the_stages(on_folder, tmp_path, count, shift, words):
  """Refused if they differ; the same pictures are the same data, though the files' bytes differ."""
  experiment, first = on_folder
  shutil.copytree(first / "w", tmp_path / "w")
  prepared(tmp_path, "second", count, shift, "data")
  moved = override(experiment, "data.data_dir", str(tmp_path / "data"))
  if words:
    before = {path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"began with other data: .*prepare them as they were") as error:
      train(moved, tmp_path / "w", devices=1)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert before == {path: path.read_bytes() for path in (tmp_path / "w").rglob("*") if path.is_file()}
  else:
    latents = {path.name for path in (tmp_path / "w" / "latents").iterdir()}
    train(moved, tmp_path / "w", devices=1)
    assert committed(tmp_path / "w", "denoiser")[-1] == STEPS
    assert latents == {path.name for path in (tmp_path / "w" / "latents").iterdir()}, "the latents are found"


@pytest.mark.slow
def test_a_run_without_a_checkpoint_starts_on_other_data(on_folder, tmp_path):
  experiment, first = on_folder
  (tmp_path / "w").mkdir()
  for name in ("data.json", "experiment.json"):
    shutil.copy(first / "w" / name, tmp_path / "w")
  prepared(tmp_path, "second", 48, 1, "data")
  moved = override(experiment, "data.data_dir", str(tmp_path / "data"))
  train(moved, tmp_path / "w", ("autoencoder",), devices=1)
  identity = workdirs.read_data_identity(tmp_path / "w")
  assert (
    identity["train"]["examples"] == 20
    and identity == moved.data.fingerprint() != experiment.data.fingerprint()
  )
  assert identity["classes"] == ["a", "b"]
