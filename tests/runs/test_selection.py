"""The denoiser is judged on a schedule, what is best is kept, and training notices nothing of it."""

import dataclasses
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from jldm.cli import main
from jldm.config.experiment import Evaluation
from jldm.config.override import override
from jldm.core.errors import Preempted, UserError
from jldm.inference.load import load, restore_result
from jldm.inference.model import find_stage
from jldm.media import images as pictures
from jldm.runs import selection
from jldm.runs.train import train
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.logging import Log
from tests.configs import config, shrunk

STEPS = 6
ASKED = Evaluation(extractor="pixels", n=70, every_steps=2)


@pytest.fixture(scope="module")
def plain():
  experiment = shrunk(config("digits"), STEPS)
  return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, count=80))


@pytest.fixture(scope="module")
def judged(plain):
  return dataclasses.replace(plain, evaluation=ASKED)


@pytest.fixture(scope="module")
def unjudged_run(plain, tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "plain"
  train(plain, path, devices=1)
  return path


def begun(experiment, after, path):
  """A workdir whose autoencoder is finished."""
  workdirs.claim_workdir(path, experiment)
  for part in ("autoencoder", "latents", "conditions"):
    shutil.copytree(after / part, path / part)
  return path


@pytest.fixture(scope="module")
def run(judged, unjudged_run, tmp_path_factory):
  path = begun(judged, unjudged_run, tmp_path_factory.mktemp("runs") / "judged")
  train(judged, path, devices=1)
  return path


def ema(path):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(load(path)[1])]


@pytest.mark.slow
def test_training_ends_with_the_same_bits(unjudged_run, run):
  for a, b in zip(ema(unjudged_run), ema(run), strict=True):
    np.testing.assert_array_equal(a, b)
  manifests = [
    json.loads((workdirs.checkpoints_folder(path, "denoiser") / f"{STEPS}.manifest.json").read_text())
    for path in (unjudged_run, run)
  ]
  assert manifests[0]["step"] == manifests[1]["step"] == STEPS
  assert not (unjudged_run / "denoiser" / "best").exists() and not (unjudged_run / "evaluation").exists()


def scores(path):
  files = {
    int(file.stem): json.loads(file.read_text())
    for file in workdirs.evaluation_folder(path).glob("[0-9]*.json")
  }
  return {step: record["metrics"]["frechet"]["value"] for step, record in sorted(files.items())}


@pytest.mark.slow
def test_what_is_best_is_kept(run):
  actual = scores(run)
  assert list(actual) == [2, 4, 6]
  with Checkpoints(workdirs.best_folder(run, "denoiser"), read_only=True) as kept:
    assert kept.steps() == [min(actual, key=actual.get)] and kept.items(kept.steps()[0]) == ["ema", "score"]
    score = kept.restore(kept.steps()[0], {"score": selection.SCORE})["score"]
  assert score == np.float32(min(actual.values()))
  _, params = load(run, best=True)
  assert restore_result(find_stage(run), best=True)[0] == min(actual, key=actual.get)
  assert jax.tree.structure(params) == jax.tree.structure(load(run)[1])
  with pytest.raises(UserError, match=r"the best denoiser and sigma_rel=0.1; expected one of them"):
    load(run, 0.1, best=True)


def test_the_best_is_sampled_and_evaluated(run, tmp_path):
  common = ["--workdir", str(run), "--best", "--n", "70", "--steps", "2", "--devices", "1"]
  assert main(["sample", *common, "--out", str(tmp_path / "O")]) == 0
  assert pictures.read_provenance(tmp_path / "O" / "00000.png")["best"] is True
  copy = tmp_path / "w"
  shutil.copytree(run, copy)
  assert main(["evaluate", *common, "--workdir", str(copy), "--stage", "denoiser", "--metrics", "kid"]) == 0
  step = min(scores(run), key=scores(run).get)
  assert json.loads((workdirs.evaluation_folder(copy) / f"{step}.json").read_text())["checkpoint"] == "best"


def test_figures_go_to_the_log(run):
  logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert {row["step"]: row["evaluation_frechet"] for row in logged if "evaluation_frechet" in row} == scores(
    run
  )


class Stop(Exception):
  pass


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 4, 5])
def test_a_run_that_was_stopped_keeps_the_same(judged, run, unjudged_run, tmp_path, monkeypatch, at):
  """It saves every second step, after which a judged step may come twice."""
  path = begun(judged, unjudged_run, tmp_path / "w")

  def interrupt(log, step, state, metrics):
    if step == at:
      raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(Log, "collect", interrupt)
    patch.setattr(Log, "write", lambda *args: None)
    with pytest.raises(Stop):
      train(judged, path, devices=1)
  train(judged, path, devices=1)
  assert scores(path) == scores(run)
  for a, b in zip(ema(path), ema(run), strict=True):
    np.testing.assert_array_equal(a, b)
  kept = [restore_result(find_stage(each), best=True) for each in (path, run)]
  assert kept[0][0] == kept[1][0]
  for a, b in zip(*(jax.tree.leaves(each) for _, each in kept), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_judgement_is_left_at_its_next_batch_and_its_step_kept(judged, unjudged_run, tmp_path, monkeypatch):
  path, draw = begun(judged, unjudged_run, tmp_path / "w"), selection.evaluate.generate_samples

  def asked(*args):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    return draw(*args)

  monkeypatch.setattr(selection.evaluate, "generate_samples", asked)
  with pytest.raises(Preempted, match="at denoiser step 2"):
    train(judged, path, devices=1)
  with Checkpoints(workdirs.checkpoints_folder(path, "denoiser"), read_only=True) as saved:
    assert saved.steps() == [2]
  assert not scores(path)


def test_only_what_is_better_and_newer_is_kept(tmp_path):
  with Checkpoints(tmp_path, keep=1) as kept:
    taken = []
    for step, score in ((1, 3.0), (2, 5.0), (3, 2.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, -1.0), (6, 0.0)):
      if selection.is_better(kept, step, np.float32(score)):
        kept.save(step, {"ema": {"w": np.ones(2, np.float32)}, "score": np.float32(score)})
        taken.append(step)
  assert taken == [1, 3, 5]


@pytest.mark.parametrize(
  ("path", "text", "message"),
  [
    ("evaluation.every_steps", "-1", "evaluation.every_steps=-1; expected whole numbers in [0, "),
    ("evaluation.extractor", "", "no extractor is named, and none fits all data"),
    ("evaluation.extractor", "pixel", "did you mean 'pixels'?"),
    ("evaluation.metric", "fid", "evaluation.metric='fid'; expected one of frechet, kid, cmmd, precision"),
    ("evaluation.n", "64", "64 pictures for features of width 64"),
    ("evaluation.n", "3", "n=3; expected at least 20 pictures"),
    ("evaluation.extractor", "dinov2", "comes without weights"),
  ],
)
def test_what_cannot_be_judged_is_reported_before_training(judged, tmp_path, path, text, message):
  with pytest.raises(UserError) as error:
    train(override(judged, path, text), tmp_path / "w", devices=1)
  assert message in str(error.value) and not (tmp_path / "w").exists()
