"""What cannot be trained is refused in one line before anything is written."""

import dataclasses

import pytest

from jldm.config.experiment import Pretrained, Stage
from jldm.config.override import override
from jldm.core.errors import UserError
from jldm.data.synthetic import Synthetic
from jldm.inference.load import load
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.objectives.autoencoder import Reconstruction
from jldm.runs.train import train
from tests.trained import with_conditioner


@pytest.mark.parametrize(
  "path, text, message",
  [
    ("denoiser.steps", "0", "denoiser.steps=0; expected at least 1"),
    (
      "autoencoder.batch_size",
      "9",
      "batch size 9 is not divisible by 8 devices; use batch size 8 or 16, or --devices 1 or 3",
    ),
    ("denoiser.accumulate", "3", "not divisible by accumulate=3"),
    ("data.height", "30", "sides divisible by the autoencoder's factor"),
    ("data.channels", "3", "data has 3 channels and the autoencoder 1"),
    ("denoiser.objective.network.patch", "3", "patch=3"),
    ("denoiser.objective.network.dtype", "bfloat17", "bfloat17"),
  ],
)
def test_mistakes_leave_nothing(experiment, tmp_path, path, text, message):
  with pytest.raises(UserError) as error:
    train(override(experiment, path, text), tmp_path / "w", devices=8)
  assert message in str(error.value) and "\n" not in str(error.value)
  assert not (tmp_path / "w").exists()


def test_the_denoiser_alone_needs_a_finished_autoencoder(experiment, tmp_path):
  with pytest.raises(UserError, match="not finished; train it first"):
    train(experiment, tmp_path / "w", ("denoiser",))
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      "parametrization=Predict('eps')",
      "time_scale=1.0) says nothing about the data at t = 1 of Flow(); use Predict('v') or",
    ),
    ("parametrization=Precondition()", "at t = 1 of Flow(); use Predict('v') or Predict('flow')"),
    (
      "network.classes=3",
      "data has 10 classes, the denoiser label.classes=10, network.classes=3; --set "
      "denoiser.objective.network.classes=10",
    ),
    ("network.patch=3", "latents of 4x4; expected sides divisible by patch=3"),
    ("network.self_conditioning=True", "expected a share such as 0.5 and True, or 0 and False"),
  ],
)
def test_what_could_not_be_sampled_is_not_trained(experiment, tmp_path, change, message):
  with pytest.raises(UserError) as error:
    train(override(experiment, *f"denoiser.objective.{change}".split("=", 1)), tmp_path / "w", devices=1)
  assert message in str(error.value) and "\n" not in str(error.value)
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  ("path", "text", "message"),
  [
    ("denoiser.optimizer.frozen", "nothing_like_it", "frozen='nothing_like_it'"),
    ("autoencoder.optimizer.no_decay", "nothing_like_it", "no_decay='nothing_like_it'"),
  ],
)
def test_regexes_that_find_nothing_are_reported_before_training(experiment, tmp_path, path, text, message):
  with pytest.raises(UserError) as error:
    train(override(experiment, path, text), tmp_path / "w", devices=1)
  assert message in str(error.value) and not (tmp_path / "w").exists()


def test_an_average_that_is_a_number_is_reported(experiment, tmp_path):
  number = experiment.with_stage(dataclasses.replace(experiment.stage("denoiser"), ema=0.999))
  with pytest.raises(UserError, match=r"denoiser.ema=0.999; expected an average such as Decay\(0.999\)"):
    train(number, tmp_path / "w", devices=1)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      ("perceptual_weight", "0.5"),
      "perceptual_weight=0.5 without weights; set lpips to a file that jldm convert",
    ),
    (("lpips", "nowhere.safetensors"), "cannot read 'nowhere.safetensors'"),
  ],
)
def test_lpips_weights_are_looked_for_before_training(experiment, tmp_path, change, message):
  weighted = override(experiment, "autoencoder.objective.perceptual_weight", "0.5")
  with pytest.raises(UserError) as error:
    train(override(weighted, f"autoencoder.objective.{change[0]}", change[1]), tmp_path / "w", devices=1)
  assert message in str(error.value) and not (tmp_path / "w").exists()


def test_a_condition_that_does_not_fit_the_pictures_is_reported_before_training(experiment, tmp_path):
  changed = with_conditioner(experiment, "Paired(degradation=Downsampled(5))")
  with pytest.raises(
    UserError, match=r"pictures of 32x32; expected sides divisible by Downsampled\(factor=5\).factor"
  ):
    train(changed, tmp_path / "w", devices=1)
  assert not (tmp_path / "w").exists()


def test_what_an_imported_autoencoder_does_not_fit(on_imported, imported, tmp_path):
  replace = dataclasses.replace
  network = KLAutoencoder(channels=1, widths=(4, 8))
  start = Stage(name="autoencoder", objective=Reconstruction(network=network), start=str(imported))
  denoiser, after = on_imported.stage("denoiser"), on_imported.with_stage
  for wrong, message in (
    (
      replace(on_imported, data=Synthetic(channels=3, classes=10)),
      "data has 3 channels and the autoencoder 1; make them equal",
    ),
    (after(Pretrained(str(tmp_path / "no"))), "does not exist; expected a folder that train.py made"),
    (after(start), "has another network: autoencoder.objective.network.latent_channels: 2 -> 4"),
    (
      after(replace(denoiser, start="w")),
      r"denoiser relies on 'w'; expected an earlier stage \(autoencoder\) or the path of a",
    ),
    (after(replace(denoiser, start=str(imported))), "which has no denoiser; its stages are autoencoder"),
    (
      after(replace(denoiser, start="autoencoder")),
      "denoiser relies on 'autoencoder', which makes a codec; expected a denoiser",
    ),
    (after(replace(start, start="", steps=0)), "autoencoder.steps=0; expected at least 1"),
  ):
    with pytest.raises(UserError, match=message):
      train(wrong, tmp_path / "w", devices=1)
  with pytest.raises(UserError, match="has no data or no denoiser; use its workdir in another: Pretrained"):
    load(imported)
  assert not (tmp_path / "w").exists()
