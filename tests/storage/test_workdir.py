import os
from pathlib import Path

import numpy as np
import pytest

from jldm.config.override import override
from jldm.config.serialize import dumps
from jldm.core.errors import UserError
from jldm.inference.load import build_model
from jldm.runs import latents
from jldm.storage import workdir as workdirs
from tests.configs import STAGES, config

DIGITS = config("digits")


def refused(call, *arguments) -> str:
  with pytest.raises(UserError) as error:
    call(*arguments)
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("inner", ["w", "a/b/w", "."])
def test_a_workdir_is_claimed_read_and_claimed_again(tmp_path, inner):
  workdir = tmp_path / inner
  workdirs.check_workdir(workdir, DIGITS)
  assert not any(tmp_path.iterdir()), "to check writes nothing"
  for _ in range(2):
    workdirs.claim_workdir(workdir, DIGITS)
    assert workdirs.read_experiment(workdir) == DIGITS
    assert [path.name for path in workdir.iterdir()] == ["experiment.json"]


def test_what_a_kill_leaves_before_there_is_an_experiment_is_not_in_the_way(tmp_path):
  for name in ("lock", "experiment.json.partial"):
    (tmp_path / name).write_text("{")
  workdirs.claim_workdir(tmp_path, DIGITS)
  assert workdirs.read_experiment(tmp_path) == DIGITS


def test_what_a_run_adds_does_not_matter(tmp_path):
  workdirs.claim_workdir(tmp_path, DIGITS)
  (tmp_path / "metrics.jsonl").write_text("{}\n")
  workdirs.check_workdir(tmp_path, DIGITS)


def test_another_experiment_is_refused_with_the_difference(tmp_path):
  workdirs.claim_workdir(tmp_path, DIGITS)
  other = override(DIGITS, "denoiser.steps", "5")
  record, steps = refused(workdirs.claim_workdir, tmp_path, other), DIGITS.stage("denoiser").steps
  assert f"holds another experiment: denoiser.steps: {steps} -> 5; choose another --workdir" in record
  for path in ("seed", "autoencoder.steps", "denoiser.batch_size", "sampling.steps"):
    other = override(other, path, "5")
  record = refused(workdirs.claim_workdir, tmp_path, other)
  assert record.count(" -> ") == 3 and "(and 2 more)" in record
  assert workdirs.read_experiment(tmp_path) == DIGITS


def test_memory_may_be_traded_for_time_in_a_workdir_that_ran_out_of_it(tmp_path):
  workdirs.claim_workdir(tmp_path, DIGITS)
  changed = override(DIGITS, "denoiser.objective.network.remat", "full")
  workdirs.claim_workdir(tmp_path, changed)
  assert workdirs.read_experiment(tmp_path) == changed
  for network in ("autoencoder", "denoiser"):
    path = f"{network}.objective.network.remat"
    codec = {"params": {"a": np.ones(3)}, "mean": np.zeros(3), "std": np.ones(3)}
    other = override(DIGITS, path, "full")
    for hashed in (latents.moments_hash, latents.conditions_hash):
      assert hashed(codec, build_model(DIGITS), DIGITS.data) == hashed(codec, build_model(other), other.data)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
  (tmp_path / "thesis.tex").write_text("mine")
  assert "is not empty and not a workdir" in refused(workdirs.claim_workdir, tmp_path, DIGITS)
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_address_is_no_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for text in ("gs://bucket/run", "s3://bucket/run"):
    assert "is an address; expected a path" in refused(workdirs.check_workdir, Path(text), DIGITS)
  assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_shared_is_told_of(tmp_path):
  assert "is not visible to this process; choose a --workdir that all processes share" in refused(
    workdirs.check_shared_workdir, tmp_path / "w", DIGITS
  )
  workdirs.claim_workdir(tmp_path / "w", DIGITS)
  workdirs.check_shared_workdir(tmp_path / "w", DIGITS)
  other = override(DIGITS, "seed", "5")
  assert "holds another experiment: seed" in refused(workdirs.check_shared_workdir, tmp_path / "w", other)


@pytest.mark.parametrize("inner", ["file", "file/w", "file/a/w", "x" * 300])
def test_a_place_that_cannot_be_written_to_is_refused(tmp_path, inner):
  (tmp_path / "file").write_text("")
  record = refused(workdirs.claim_workdir, tmp_path / inner, DIGITS)
  assert "choose another --workdir" in record
  assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_folder_without_permission_is_refused(tmp_path, mode):
  locked = tmp_path / "locked"
  locked.mkdir(mode)
  try:
    for workdir in (locked, locked / "w"):
      assert "cannot write to workdir" in refused(workdirs.claim_workdir, workdir, DIGITS)
  finally:
    locked.chmod(0o700)


def test_a_claim_cut_short_leaves_nothing_believed_and_can_be_made_again(tmp_path, monkeypatch):
  class Killed(Exception):
    pass

  def die(*names):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(os, "replace", die)
    with pytest.raises(Killed):
      workdirs.claim_workdir(tmp_path, DIGITS)
  assert "has no experiment.json" in refused(workdirs.read_experiment, tmp_path)
  workdirs.claim_workdir(tmp_path, DIGITS)
  assert [path.name for path in tmp_path.iterdir()] == ["experiment.json"]


@pytest.mark.parametrize(
  "inner, message",
  [
    ("missing", "does not exist; expected a folder that train.py made"),
    (".", "has no experiment.json; expected a folder that train.py made"),
    ("x" * 300, "cannot read workdir"),
  ],
)
def test_what_is_not_a_workdir_is_not_read(tmp_path, inner, message):
  assert message in refused(workdirs.read_experiment, tmp_path / inner)


@pytest.mark.parametrize("text", ["", dumps(DIGITS)[:100], "[]"])
def test_a_damaged_experiment_is_told(tmp_path, text):
  (tmp_path / "experiment.json").write_text(text)
  assert "not an experiment" in refused(workdirs.read_experiment, tmp_path)
  assert "not an experiment" in refused(workdirs.check_workdir, tmp_path, DIGITS)


def test_checkpoints_of_the_stages_are_apart(tmp_path):
  places = {workdirs.checkpoints_folder(tmp_path, stage) for stage in STAGES}
  assert places == {tmp_path / "autoencoder" / "latest", tmp_path / "denoiser" / "latest"}
