"""Random flips of one bit in what a training goes on from: noticed, or without any effect on what is
restored.
"""

import json
from pathlib import Path
import random
import re
import shutil

import numpy as np
import pytest

from jldm.config.experiment import Experiment
from jldm.config.registry import EXECUTION_FIELDS
from jldm.config.serialize import dumps
from jldm.core.errors import UserError
from jldm.runs.train import train
from jldm.storage import array_cache, workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from tests.configs import STAGES
from tests.faults.processes import restored
from tests.trained import STEPS

FLIPS = 200


@pytest.fixture(scope="module")
def trained(unbroken):
  return unbroken


def flipped(data: bytes, rng: random.Random) -> bytes:
  at = rng.randrange(len(data))
  return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def values(folder: Path) -> dict[str, bytes]:
  return {name: array.tobytes() for name, array in restored(folder).items()}


@pytest.mark.parametrize("stage", STAGES)
def test_a_flip_anywhere_in_a_checkpoint_is_noticed_or_changes_nothing(trained, tmp_path, capsys, stage):
  folder = tmp_path / "latest"
  shutil.copytree(workdirs.checkpoints_folder(trained, stage), folder)
  files = sorted(path for path in (folder / str(STEPS)).rglob("*") if path.is_file() and path.stat().st_size)
  files.append(folder / f"{STEPS}.manifest.json")
  whole, rng, unnoticed = values(folder / str(STEPS)), random.Random(stage), []
  assert len(files) > 20 and len(whole) > 50
  order = [files[i % len(files)] for i in range(FLIPS // 2)]  # every file of a checkpoint, several times
  for path in order:
    data = path.read_bytes()
    path.write_bytes(flipped(data, rng))
    with Checkpoints(folder, read_only=True) as saved:
      step = saved.latest()
    message = capsys.readouterr().err
    if step == STEPS:
      unnoticed.append(path)
      assert values(folder / str(STEPS)) == whole, path
    else:
      assert (
        step == STEPS - 2
        and message.startswith(f"checkpoint {folder / str(STEPS)} is damaged: ")
        and message.count("\n") == 1
      )
      assert f"; using step {step} instead" in message
    path.write_bytes(data)
  assert not unnoticed, "the manifest says every byte"
  with Checkpoints(folder, read_only=True) as saved:
    assert saved.latest() == STEPS


@pytest.mark.slow
def test_training_goes_on_from_the_step_before_the_damaged_one(experiment, trained, tmp_path, capsys):
  """Both stages, damaged in turn: the last step is set aside, made again, and the same to the bit."""
  for stage in STAGES:
    workdir = tmp_path / stage
    shutil.copytree(trained, workdir)
    latest = workdirs.checkpoints_folder(workdir, stage)
    path = max(
      (path for path in (latest / str(STEPS)).rglob("*") if path.is_file()),
      key=lambda path: path.stat().st_size,
    )
    path.write_bytes(flipped(path.read_bytes(), random.Random(0)))
    train(experiment, workdir, devices=1)
    message = capsys.readouterr().err
    assert (
      f"checkpoint {latest / str(STEPS)} is damaged" in message
      and f"using step {STEPS - 2} instead (moved to" in message
    )
    assert values(latest / str(STEPS)) == values(workdirs.checkpoints_folder(trained, stage) / str(STEPS))


def test_a_flip_in_the_experiment_is_noticed_or_changes_nothing(experiment, trained, tmp_path, capsys):
  """Refused, or a line that names the field, of one that changes no step; the claim writes it right again."""
  workdir, rng, noticed = tmp_path / "w", random.Random(0), 0
  for stage in STAGES:
    shutil.copytree(trained / stage, workdir / stage)
  data = (trained / "experiment.json").read_bytes()
  for _ in range(FLIPS):
    (workdir / "experiment.json").write_bytes(flipped(data, rng))
    try:
      changed = workdirs.check_workdir(workdir, experiment)
    except UserError as error:
      assert "\n" not in str(error)
      noticed += 1
      continue
    if changed:
      assert all(change.path.split(".")[0] in ("sampling", "evaluation", *STAGES) for change in changed)
      workdirs.claim_workdir(workdir, experiment)
      record = capsys.readouterr().out
      assert all(str(change) in record for change in changed)
      noticed += 1
    assert computed_fields(workdirs.read_experiment(workdir)) == computed_fields(experiment)
  assert noticed > FLIPS / 2, "half of it and more is names and numbers"


def computed_fields(experiment: Experiment) -> str:
  """An experiment without the fields that change no value, which a run may change without a word."""
  return re.sub(rf'"({"|".join(EXECUTION_FIELDS)})": "[^"]*"', "", dumps(experiment))


@pytest.mark.parametrize("kind", ["latents", "conditions"])
def test_a_flip_in_the_cached_latents_is_noticed_or_changes_nothing(trained, tmp_path, kind):
  folder, rng, noticed = tmp_path / "cache", random.Random(0), 0
  (cache,) = (trained / kind).iterdir()
  shutil.copytree(cache, folder)
  read = lambda source: {name: array.tobytes() for name, array in source[np.arange(len(source))].items()}
  whole = read(array_cache.open_cache(folder))
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  assert {path.name for path in files} == {"index.json", *(f"{name}.npy" for name in whole)} and len(
    files
  ) == len(whole) + 2
  for i in range(FLIPS):
    path = files[i % len(files)]
    data = path.read_bytes()
    path.write_bytes(flipped(data, rng))
    source = array_cache.open_cache(folder)
    assert source is None or read(source) == whole, path
    noticed += source is None
    path.write_bytes(data)
  assert noticed > FLIPS / 2


def test_half_a_line_and_flips_in_the_log_stop_no_training(experiment, trained, tmp_path):
  """metrics.jsonl is of what was, and no run depends on it."""
  from jldm.train.logging import drop_rows_after, read_rows

  data, path, rng = (trained / "metrics.jsonl").read_bytes(), tmp_path / "metrics.jsonl", random.Random(0)
  for _ in range(FLIPS):
    path.write_bytes(flipped(data, rng)[: rng.randrange(len(data))])
    drop_rows_after(path, "denoiser", 2)
    assert all(row["stage"] != "denoiser" or row["step"] <= 2 for _, row in read_rows(path))
    assert all(isinstance(json.loads(line), dict) for line in path.read_bytes().splitlines())
