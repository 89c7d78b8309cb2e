import dataclasses
import json
import os
from pathlib import Path
import shutil

import numpy as np
import pytest

from jldm.config.override import override
from jldm.config.serialize import dumps
from jldm.core.errors import UserError
from jldm.inference.model import build_model
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


def commit(workdir: Path, stage: str, step: int, kind: str = "latest") -> None:
  """A committed step of nothing: what is committed counts here, not what it holds."""
  folder = workdir / stage / kind
  (folder / str(step)).mkdir(parents=True)
  (folder / f"{step}.manifest.json").write_text("{}")


def changed_by(*assignments: str):
  experiment = DIGITS
  for assignment in assignments:
    experiment = override(experiment, *assignment.split("=", 1))
  return experiment


STEPS_OF = {stage: DIGITS.stage(stage).steps for stage in STAGES}


def test_another_experiment_is_refused_with_the_difference(tmp_path):
  workdirs.claim_workdir(tmp_path, DIGITS)
  commit(tmp_path, "denoiser", 550)
  steps = STEPS_OF["denoiser"]
  record = refused(workdirs.claim_workdir, tmp_path, changed_by("denoiser.steps=5"))
  assert f"holds another experiment: denoiser.steps: {steps} -> 5; denoiser is at step 550" in record
  assert "choose another --workdir" in record
  other = changed_by(
    "denoiser.steps=5", "seed=5", "autoencoder.steps=5", "denoiser.batch_size=5", "data.classes=5"
  )
  record = refused(workdirs.claim_workdir, tmp_path, other)
  assert record.count(" -> ") == 3 and "(and 2 more)" in record
  assert workdirs.read_experiment(tmp_path) == DIGITS
  assert not (tmp_path / "changes.jsonl").exists()


@pytest.mark.parametrize(
  "change",
  [
    "seed=5",
    "data.classes=3",
    "denoiser.batch_size=8",
    "autoencoder.objective.network.widths=(8,8)",
    "denoiser.ema.decay=0.5",
  ],
)
def test_a_run_without_a_checkpoint_may_start_with_any_other_settings(tmp_path, capsys, change):
  workdirs.claim_workdir(tmp_path, DIGITS)
  for stage in STAGES:  # what a killed run left before its first commit
    (tmp_path / stage / "latest" / "100.orbax-checkpoint-tmp").mkdir(parents=True)
  workdirs.claim_workdir(tmp_path, changed_by(change))
  assert workdirs.read_experiment(tmp_path) == changed_by(change)
  assert f"{change.split('=')[0]}" in capsys.readouterr().out
  commit(tmp_path, "autoencoder", STEPS_OF["autoencoder"])
  commit(tmp_path, "denoiser", 550)
  assert "holds another experiment" in refused(workdirs.claim_workdir, tmp_path, DIGITS)


@pytest.mark.parametrize(
  "change",
  [
    "sampling.steps=7",
    "sampling.sampler=Heun()",
    "sampling.guidance.guidance_scale=3.0",
    "evaluation.every_steps=100",
    "evaluation.metric=kid",
    "denoiser.log_every_steps=7",
    "denoiser.save_every_steps=7",
    "denoiser.keep=7",
    "denoiser.keep_every_steps=7000",
    "autoencoder.picture_every_steps=7",
    "denoiser.snapshot_every_steps=7",
    "denoiser.devices=2",
    "denoiser.steps=2000",
  ],
)
def test_what_changes_no_step_that_was_made_may_change_in_a_finished_run(tmp_path, capsys, change):
  workdirs.claim_workdir(tmp_path, DIGITS)
  for stage, steps in STEPS_OF.items():
    commit(tmp_path, stage, steps)
  workdirs.claim_workdir(tmp_path, changed_by(change))
  assert workdirs.read_experiment(tmp_path) == changed_by(change)
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) >= 1 and change.split("=")[0] in lines[0] and " -> " in lines[0]
  assert f"denoiser at step {STEPS_OF['denoiser']}" in lines[0]
  record = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
  assert len(record) == len(lines) and record[0]["steps"] == STEPS_OF
  workdirs.claim_workdir(tmp_path, changed_by(change))
  assert not capsys.readouterr().out, "nothing changed since"


@pytest.mark.parametrize(
  ("reached", "change", "words"),
  [  # steps of (autoencoder, denoiser); None is no checkpoint
    ((250, None), "autoencoder.optimizer.schedule.peak=1e-4", None),
    ((250, None), "autoencoder.optimizer.schedule=Constant(peak=1e-4)", None),
    ((250, None), "autoencoder.optimizer.clip_norm=0.5", None),
    ((250, None), "denoiser.objective.network.width=64", None),
    ((250, None), "autoencoder.steps=251", None),
    ((250, None), "autoencoder.steps=250", "autoencoder is at step 250, set autoencoder.steps to more"),
    ((250, None), "autoencoder.objective.kl_weight=0.1", "autoencoder is at step 250"),
    ((250, None), "autoencoder.batch_size=8", "autoencoder is at step 250"),
    ((500, None), "autoencoder.steps=600", None),
    ((500, None), "autoencoder.patience=3", None),
    ((500, 550), "autoencoder.patience=3", "denoiser has trained on the result of autoencoder"),
    ((500, None), "autoencoder.optimizer.schedule.peak=1e-4", "set autoencoder.steps to more"),
    ((500, 550), "autoencoder.steps=600", "denoiser has trained on the result of autoencoder"),
    ((500, 550), "denoiser.optimizer.schedule.peak=1e-4", None),
    ((500, 550), "denoiser.ema.decay=0.5", "denoiser is at step 550"),
    ((500, 550), "denoiser.optimizer.b2=0.5", "denoiser is at step 550"),
    ((500, 550), "seed=7", "it holds checkpoints"),
    ((500, 550), "data.name=others", "it holds checkpoints"),
    ((500, 550), "data.data_dir=elsewhere", "it is not recorded what the data were"),
  ],
)
def test_a_stage_may_change_until_its_steps_or_another_stage_depend_on_it(tmp_path, reached, change, words):
  workdirs.claim_workdir(tmp_path, DIGITS)
  for stage, step in zip(STAGES, reached):
    if step is not None:
      commit(tmp_path, stage, step)
  if words is None:
    workdirs.claim_workdir(tmp_path, changed_by(change))
    assert workdirs.read_experiment(tmp_path) == changed_by(change)
  else:
    assert words in refused(workdirs.claim_workdir, tmp_path, changed_by(change))


def test_a_lower_rate_comes_with_more_steps_of_a_finished_stage(tmp_path):
  workdirs.claim_workdir(tmp_path, DIGITS)
  for stage, steps in STEPS_OF.items():
    commit(tmp_path, stage, steps)
  rate = "denoiser.optimizer.schedule.peak=1e-4"
  assert "set denoiser.steps to more" in refused(workdirs.claim_workdir, tmp_path, changed_by(rate))
  workdirs.claim_workdir(tmp_path, changed_by(rate, "denoiser.steps=2000"))


def test_a_best_denoiser_was_chosen_by_its_metric(tmp_path):
  workdirs.claim_workdir(tmp_path, DIGITS)
  commit(tmp_path, "denoiser", 100, "best")
  refusal = refused(workdirs.claim_workdir, tmp_path, changed_by("evaluation.metric=kid"))
  assert f"remove {tmp_path / 'denoiser' / 'best'}" in refusal
  workdirs.claim_workdir(tmp_path, changed_by("evaluation.every_steps=9"))
  shutil.rmtree(tmp_path / "denoiser" / "best")
  workdirs.claim_workdir(tmp_path, changed_by("evaluation.metric=kid"))


def test_what_could_not_be_read_back_is_refused():
  """In Python a field takes anything."""
  workdirs.check_readable(DIGITS)
  stage = dataclasses.replace(DIGITS.stage("denoiser"), log_every_steps=5.0)
  assert "Stage.log_every_steps is 5.0; expected int" in refused(
    workdirs.check_readable, DIGITS.with_stage(stage)
  )


DATA = {
  "train": {"examples": 24, "digest": "a"},
  "held_out": {"examples": 2, "digest": "b"},
  "classes": ["x", "y"],
}


def test_other_data_are_refused_with_the_difference(tmp_path):
  workdirs.claim_workdir(tmp_path, DIGITS, DATA)
  assert workdirs.read_data_identity(tmp_path) == DATA
  assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "experiment.json"]
  other = DATA | {"train": {"examples": 48, "digest": "c"}}
  workdirs.check_data(tmp_path, other)  # nothing has been trained on the data
  commit(tmp_path, "autoencoder", 250)
  workdirs.claim_workdir(tmp_path, DIGITS, DATA)
  refusal = refused(workdirs.check_data, tmp_path, other)
  assert "data.train.examples: 24 -> 48" in refusal and "data.train.digest: 'a' -> 'c'" in refusal
  assert refusal == refused(workdirs.claim_workdir, tmp_path, DIGITS, other)
  assert workdirs.read_data_identity(tmp_path) == DATA


def test_a_moved_data_dir_is_the_same_data(tmp_path):
  workdirs.claim_workdir(tmp_path, DIGITS, DATA)
  commit(tmp_path, "autoencoder", 250)
  moved = changed_by("data.data_dir=/elsewhere")
  workdirs.claim_workdir(tmp_path, moved, DATA)
  codec = {"params": {"a": np.ones(3)}, "mean": np.zeros(3), "std": np.ones(3)}
  for hashed in (latents.moments_hash, latents.conditions_hash):
    both = {hashed(codec, build_model(each), each.data, DATA) for each in (DIGITS, moved)}
    assert len(both) == 1
    assert hashed(codec, build_model(DIGITS), DIGITS.data, DATA | {"classes": []}) not in both


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "\x00"])
def test_damaged_words_on_the_data_are_one_line(tmp_path, text):
  workdirs.claim_workdir(tmp_path, DIGITS)
  (tmp_path / "data.json").write_text(text)
  assert "cannot be read; remove it if" in refused(workdirs.check_data, tmp_path, DATA)


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


def test_a_folder_that_is_not_shared_is_reported_of(tmp_path):
  assert "is not visible to this process; choose a --workdir that all processes share" in refused(
    workdirs.check_shared_workdir, tmp_path / "w", DIGITS
  )
  workdirs.claim_workdir(tmp_path / "w", DIGITS)
  workdirs.check_shared_workdir(tmp_path / "w", DIGITS)
  sampling = override(DIGITS, "sampling.steps", "5")
  refusal = refused(workdirs.check_shared_workdir, tmp_path / "w", sampling)
  assert (
    "holds another experiment: sampling.steps" in refusal and "every process the same settings" in refusal
  )
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
def test_a_damaged_experiment_is_reported(tmp_path, text):
  (tmp_path / "experiment.json").write_text(text)
  assert "not an experiment" in refused(workdirs.read_experiment, tmp_path)
  assert "not an experiment" in refused(workdirs.check_workdir, tmp_path, DIGITS)


def test_checkpoints_of_the_stages_are_apart(tmp_path):
  places = {workdirs.checkpoints_folder(tmp_path, stage) for stage in STAGES}
  assert places == {tmp_path / "autoencoder" / "latest", tmp_path / "denoiser" / "latest"}
