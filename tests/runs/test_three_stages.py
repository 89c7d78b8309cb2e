"""An autoencoder, a denoiser, and a student that starts from the denoiser and has it as its teacher."""

import dataclasses
from pathlib import Path
import shutil
from unittest import mock

import jax
import numpy as np
import pytest

from jldm.cli import main
from jldm.cli.train import load_config
from jldm.config import registry
from jldm.config.experiment import Experiment, Need
from jldm.core.errors import UserError
from jldm.distributed import sharding
from jldm.distributed.sharding import Layout
from jldm.inference.load import load
from jldm.inference.model import StagePlace, find_stage
from jldm.objectives.diffusion import Diffusion
from jldm.runs import latents, run as runs, validate
from jldm.runs.frozen import load_frozen
from jldm.runs.stage import start_or_resume
from jldm.runs.train import train
from jldm.storage import workdir as workdirs
from jldm.train.logging import Log
from tests.trained import STEPS, last_state

pytestmark = pytest.mark.slow

CONFIG = str(Path(__file__).parent / "distillation.py")


@pytest.fixture(scope="module")
def three():
  with mock.patch.dict(registry.CLASSES):
    yield load_config(CONFIG)


@pytest.fixture(autouse=True)
def classes(three):
  """Registers the config's own classes before each test: a command that imports it again replaces them."""
  with mock.patch.dict(registry.CLASSES):
    yield


def begun(three: Experiment, unbroken: Path, workdir: Path) -> Path:
  """A workdir of the three whose first two stages are finished: those of an experiment of two, by the
  same names.
  """
  workdirs.claim_workdir(workdir, three)
  for part in ("autoencoder", "denoiser", "latents", "conditions"):
    shutil.copytree(unbroken / part, workdir / part)
  return workdir


@pytest.fixture(scope="module")
def finished(three, unbroken, tmp_path_factory):
  workdir = begun(three, unbroken, tmp_path_factory.mktemp("three") / "w")
  train(three, workdir, devices=1)
  return workdir


class Stop(Exception):
  pass


def equal(a: dict, b: dict) -> None:
  assert a.keys() == b.keys() and len(a) > 30
  for name, value in a.items():
    np.testing.assert_array_equal(value, b[name], err_msg=name)


@pytest.mark.slow
def test_stopped_in_the_third_stage_it_ends_with_the_same_bits(
  three, finished, unbroken, tmp_path, monkeypatch
):
  workdir = begun(three, unbroken, tmp_path / "w")

  def interrupt(log, step, state, metrics):
    if step == 5:
      raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(Log, "write", interrupt)
    with pytest.raises(Stop):
      train(three, workdir, devices=1)
  train(three, workdir, ("student",), devices=1)
  equal(last_state(finished, "student"), last_state(workdir, "student"))
  equal(last_state(unbroken, "denoiser"), last_state(workdir, "denoiser"))


def test_it_starts_from_its_teacher(three, unbroken, tmp_path):
  run = runs.Run(find_stage(begun(three, unbroken, tmp_path / "w"), "student"), 1)
  mesh = runs.mesh_for_stage(run.stage, 1)
  frozen = load_frozen(run, mesh)
  assert frozen.keys() == {"codec", "teacher"} and isinstance(frozen["teacher"].model, Diffusion)
  state = start_or_resume(run, latents.open_encoded(run, frozen["codec"].params), frozen, None, mesh, 0)[1]
  trained = load(unbroken)[1]
  jax.tree.map(np.testing.assert_array_equal, state.params | {"codec": trained["codec"]}, trained)


def test_the_last_stage_that_draws_is_loaded_and_any_other_by_its_name(three, finished, unbroken):
  model, params = load(finished)
  assert model.objective == three.stage("denoiser").objective, (
    "of the student's result, not the objective that trained it"
  )
  teacher, before = load(finished, stage="denoiser"), load(unbroken)
  jax.tree.map(np.testing.assert_array_equal, teacher[1], before[1])
  assert jax.tree.structure(params) == jax.tree.structure(before[1])
  moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before[1]))]
  assert max(moved) > 0
  with pytest.raises(
    UserError, match="stage 'autoencoder' makes a codec and draws nothing; expected one of denoiser, student"
  ):
    load(finished, stage="autoencoder")
  with pytest.raises(
    UserError, match="there is no stage 'pupil'; expected one of autoencoder, denoiser, student"
  ):
    load(finished, stage="pupil")


def test_it_is_sampled_from_the_command_line(finished, tmp_path):
  options = ["--workdir", str(finished), "--n", "4", "--steps", "2", "--import", CONFIG, "--devices", "1"]
  for stage in ("student", "denoiser"):
    out = str(tmp_path / f"{stage}.npz")
    assert main(["sample", *options, "--out", out, *(["--stage", stage] if stage == "denoiser" else [])]) == 0
  student, denoiser = (np.load(tmp_path / f"{stage}.npz")["images"] for stage in ("student", "denoiser"))
  assert student.shape == denoiser.shape == (4, 32, 32, 1) and (student != denoiser).any()


def test_as_one_file_it_is_the_codec_and_the_result(three, finished, tmp_path, capsys):
  """Which needs no class of the person's own any more."""
  file, again = str(tmp_path / "student.safetensors"), tmp_path / "again"
  assert main(["convert", str(finished), file, "--to", "jldm", "--import", CONFIG]) == 0
  registry.CLASSES.pop("Imitation")
  assert main(["convert", file, str(again), "--to", "jldm"]) == 0
  assert workdirs.read_experiment(again).names == ("autoencoder", "student")
  model, params = load(again)
  assert main(["info", str(finished), "--import", CONFIG]) == 0
  assert "student: Imitation, at step 6 of 6" in capsys.readouterr().out
  assert model == load(finished)[0]
  jax.tree.map(np.testing.assert_array_equal, params, load(finished)[1])


def from_paths(three: Experiment, workdir: Path) -> Experiment:
  """The student alone, which has its codec and its teacher from another workdir."""
  needs = (Need("codec", str(workdir)), Need("teacher", str(workdir)))
  student = dataclasses.replace(three.stage("student"), needs=needs, start=str(workdir))
  return dataclasses.replace(three, stages=(student,))


def test_what_it_needs_may_be_in_another_workdir(three, unbroken):
  alone = from_paths(three, unbroken)
  at = StagePlace(alone, alone.stage("student"))
  assert {role: source.stage.name for role, source in at.needed().items()} == {
    "codec": "autoencoder",
    "teacher": "denoiser",
  }
  assert at.started_from().stage.name == "denoiser"
  validate.validate_run([at], 1)


@pytest.mark.slow
def test_from_another_workdir_it_comes_to_the_same_bits(three, finished, unbroken, tmp_path):
  train(from_paths(three, unbroken), tmp_path / "w", devices=1)
  equal(last_state(finished, "student"), last_state(tmp_path / "w", "student"))
  model, params = load(tmp_path / "w")
  assert model == load(finished)[0]
  jax.tree.map(np.testing.assert_array_equal, params, load(finished)[1])


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"start": "pupil"},
      r"student relies on 'pupil'; expected an earlier stage \(autoencoder, denoiser\) or the path of",
    ),
    ({"start": "autoencoder"}, "student relies on 'autoencoder', which makes a codec; expected a denoiser"),
    (
      {"needs": (Need("codec", "denoiser"),)},
      "student relies on 'denoiser', which makes a denoiser; expected a codec",
    ),
    ({"needs": (Need("teacher", "denoiser"),)}, "student.needs has no codec; expected one such as"),
    ({"steps": 0}, "student.steps=0; expected at least 1"),
  ],
)
def test_what_a_stage_cannot_rely_on(three, tmp_path, change, message):
  changed = three.with_stage(dataclasses.replace(three.stage("student"), **change))
  with pytest.raises(UserError, match=message):
    train(changed, tmp_path / "w", devices=1)
  assert not (tmp_path / "w").exists()


def test_a_stage_waits_for_what_it_needs(three, tmp_path):
  for stage in ("denoiser", "student"):
    with pytest.raises(UserError, match="not finished; train it first: --stage autoencoder"):
      train(three, tmp_path / "w", (stage,), devices=1)
  assert not (tmp_path / "w").exists() and three.stage("student").steps == STEPS


def test_what_is_frozen_is_split_over_fsdp_as_what_is_trained(finished, monkeypatch):
  monkeypatch.setattr(
    sharding, "SMALLEST_SPLIT", 64
  )  # the student's arrays are smaller than what is worth splitting
  layout = Layout(8, fsdp=8)
  run = runs.Run(find_stage(finished, "student"), layout)
  frozen = load_frozen(run, runs.mesh_for_stage(run.stage, layout))
  assert frozen.keys() == {"codec", "teacher"}
  kernels = jax.tree.leaves(frozen["teacher"].params)
  largest = max(kernels, key=lambda kernel: kernel.size)
  assert largest.addressable_shards[0].data.size * 8 == largest.size
  held = sum(kernel.addressable_shards[0].data.nbytes for kernel in kernels)
  assert held < sum(kernel.nbytes for kernel in kernels) / 2
