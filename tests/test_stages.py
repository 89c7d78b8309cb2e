"""Both stages, shrunk: interrupted or not they end with the same bits, and what is finished is not run again."""

import json

import jax
import numpy as np
import pytest

from jldm import pipeline, stages, workdir as workdirs
from jldm.checkpoint import Checkpoints
from jldm.core.errors import NonFiniteError, UserError
from jldm.experiment import override
from tests.configs import config, shrunk

STEPS = 6


@pytest.fixture(scope="module")
def experiment():
  return shrunk(config("digits"), STEPS)


@pytest.fixture(scope="module")
def unbroken(experiment, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "unbroken"
  stages.train(experiment, workdir, devices=1)
  return workdir


def last_state(workdir, stage):
  """Every array of a stage's last checkpoint, read without knowing its types."""
  import orbax.checkpoint as ocp
  folder = workdirs.checkpoints(workdir, stage) / str(STEPS)
  items = sorted(path.name for path in folder.iterdir() if path.is_dir())
  leaves = {item: ocp.PyTreeCheckpointer().restore(folder / item) for item in items}
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(leaves)}


def assert_same_end(a, b):
  for stage in workdirs.STAGES:
    left, right = last_state(a, stage), last_state(b, stage)
    assert left.keys() == right.keys() and len(left) > 50
    for name, value in left.items():
      np.testing.assert_array_equal(value, right[name], err_msg=f"{stage} {name}")


class Stop(Exception):
  pass


@pytest.mark.slow
def test_interrupted_twice_ends_with_the_same_bits(experiment, unbroken, tmp_path, monkeypatch):
  for stage, at in (("autoencoder", 3), ("denoiser", 5)):

    def interrupt(log, step, state, metrics, stage=stage, at=at):
      if log.stage == stage and step == at:
        raise Stop

    with monkeypatch.context() as patch:
      patch.setattr(stages.Log, "write", interrupt)
      with pytest.raises(Stop):
        stages.train(experiment, tmp_path / "w", devices=1)
  stages.train(experiment, tmp_path / "w", devices=1)
  assert_same_end(unbroken, tmp_path / "w")


def test_what_is_finished_is_not_run_again(experiment, unbroken, capsys):
  before = (unbroken / "metrics.jsonl").read_text()
  stages.train(experiment, unbroken, devices=1)
  assert (unbroken / "metrics.jsonl").read_text() == before


def test_the_codec_standardises_the_cached_latents(experiment, unbroken):
  _, params = pipeline.load(unbroken)
  (cache,) = (unbroken / "latents").iterdir()
  mean, log_variance = np.load(cache / "mean.npy"), np.load(cache / "log_variance.npy")
  std = np.sqrt(mean.var((0, 1, 2)) + np.exp(log_variance).mean((0, 1, 2)))
  np.testing.assert_allclose(params["codec"]["mean"], mean.mean((0, 1, 2)), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(params["codec"]["std"], std, rtol=1e-5)


def test_the_log_has_both_stages_and_held_out_quality(unbroken):
  rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows if row["stage"] == "denoiser" and "loss" in row] == list(range(1, STEPS + 1))
  assert {"held_out_psnr", "held_out_ssim"} <= set().union(*rows)
  names = sorted(path.name for path in (unbroken / "images").iterdir())
  assert names == ["autoencoder-000006.png", "denoiser-000006.png"]


@pytest.mark.slow
def test_a_lost_or_damaged_latent_cache_is_rebuilt(experiment, unbroken, tmp_path):
  import shutil
  workdir = tmp_path / "w"
  shutil.copytree(unbroken, workdir)
  shutil.rmtree(workdir / "denoiser")
  (cache,) = (workdir / "latents").iterdir()
  whole = (cache / "mean.npy").read_bytes()
  (cache / "mean.npy").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  stages.train(experiment, workdir, devices=1)
  assert (cache / "mean.npy").read_bytes() == whole
  assert_same_end(unbroken, workdir)


def test_ten_non_finite_updates_in_a_row_stop_the_run(experiment, tmp_path):
  endless = override(override(experiment, "autoencoder.steps", "30"), "autoencoder.objective.kl_weight", "inf")
  with pytest.raises(NonFiniteError, match=r"10 non-finite updates in a row, up to step 10; .*checkpoint"):
    stages.train(endless, tmp_path / "w", devices=1)
  with Checkpoints(workdirs.checkpoints(tmp_path / "w", "autoencoder"), read_only=True) as saved:
    assert saved.steps() == [], "it saves every 2 steps, and no step was good"


@pytest.mark.parametrize("path, text, told", [
  ("denoiser.steps", "0", "denoiser.steps=0; expected at least 1"),
  ("autoencoder.batch_size", "9", "batch size 9 is not divisible by 8 devices; use batch size 8 or 16, or --devices 1 or 3"),
  ("denoiser.accumulate", "3", "not divisible by accumulate=3"),
  ("data.height", "30", "sides divisible by the autoencoder's factor"),
  ("data.channels", "3", "data has 3 channels and the autoencoder 1"),
  ("denoiser.objective.network.patch", "3", "patch=3"),
  ("denoiser.objective.network.dtype", "bfloat17", "bfloat17"),
])
def test_mistakes_leave_nothing(experiment, tmp_path, path, text, told):
  with pytest.raises(UserError) as error:
    stages.train(override(experiment, path, text), tmp_path / "w", devices=8)
  assert told in str(error.value) and "\n" not in str(error.value)
  assert not (tmp_path / "w").exists()


def test_the_denoiser_alone_needs_a_finished_autoencoder(experiment, tmp_path):
  with pytest.raises(UserError, match="not finished; train it first"):
    stages.train(experiment, tmp_path / "w", ("denoiser",))
  assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_bfloat16_accumulation_and_remat_train(tmp_path):
  experiment = shrunk(config("digits"), 4)
  for path, text in (
    ("autoencoder.objective.network.dtype", "bfloat16"), ("denoiser.objective.network.dtype", "bfloat16"),
    ("denoiser.accumulate", "2"), ("denoiser.objective.network.remat", "True"),
  ):
    experiment = override(experiment, path, text)
  stages.train(experiment, tmp_path / "w", devices=2)
  model, params = pipeline.load(tmp_path / "w")
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
  assert pipeline.generate(model, params, [1, 2], steps=2).shape == (2, 32, 32, 1)
