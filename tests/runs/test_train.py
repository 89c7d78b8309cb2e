"""Both stages, shrunk: interrupted or not they end with the same bits, and what is finished is not run
again.
"""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from jldm.cli import main
from jldm.config.override import override
from jldm.core.errors import NonFiniteError, UserError
from jldm.inference.generate import Request, generate
from jldm.inference.load import load, load_codec
from jldm.interop import safetensors
from jldm.metrics import perceptual
from jldm.models.autoencoders.discriminator import PatchDiscriminator
from jldm.models.codecs.images import ImageCodec
from jldm.objectives.adversarial import Adversarial
from jldm.objectives.autoencoder import Reconstruction
from jldm.runs.train import train
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.ema import Decay
from jldm.train.logging import Log
from jldm.train.optimizer import AdamW, Constant
from jldm.train.parts import PerPart
from tests.configs import config, shrunk
from tests.trained import STEPS, assert_same_end, claimed_with


class Stop(Exception):
  pass


def drawn(model, params, labels, steps, size=None):
  request = Request(n=len(labels), given={"label": labels}, size=size)
  return generate(model, params, request, dataclasses.replace(model.sampling, steps=steps), devices=1).data


@pytest.mark.slow
def test_interrupted_twice_ends_with_the_same_bits(experiment, unbroken, tmp_path, monkeypatch):
  for stage, at in (("autoencoder", 3), ("denoiser", 5)):

    def interrupt(log, step, state, metrics, stage=stage, at=at):
      if log.stage == stage and step == at:
        raise Stop

    with monkeypatch.context() as patch:
      patch.setattr(Log, "write", interrupt)
      with pytest.raises(Stop):
        train(experiment, tmp_path / "w", devices=1)
  train(experiment, tmp_path / "w", devices=1)
  assert_same_end(unbroken, tmp_path / "w")


def test_what_is_finished_is_not_run_again(experiment, unbroken, tmp_path):
  workdir = shutil.copytree(unbroken, tmp_path / "w")
  train(experiment, workdir, devices=1)
  assert (workdir / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()


def test_the_log_has_both_stages_and_held_out_quality(unbroken):
  rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows if row["stage"] == "denoiser" and "loss" in row] == list(
    range(1, STEPS + 1)
  )
  assert {"held_out_psnr", "held_out_ssim"} <= set().union(*rows)
  names = sorted(path.name for path in (unbroken / "images").iterdir())
  assert names == ["autoencoder-000006.png", "denoiser-000006.png"]


@pytest.mark.slow
def test_an_autoencoder_with_a_discriminator(experiment, tmp_path):
  stage = experiment.stage("autoencoder")
  discriminator = PatchDiscriminator(widths=(4, 4), groups=2)
  objective = Adversarial(inner=stage.objective, discriminator=discriminator, start_step=2)
  stage = dataclasses.replace(stage, objective=objective, optimizer=PerPart(rest=stage.optimizer))
  experiment = experiment.with_stage(stage)
  train(experiment, tmp_path / "w", devices=1)
  assert workdirs.read_experiment(tmp_path / "w") == experiment
  rows = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  assert [row["adversarial_weight"] > 0 for row in rows if "d_loss" in row] == [False] * 3 + [True] * (
    STEPS - 3
  )
  model, params = load(tmp_path / "w")
  assert "decoder" in params["codec"]["params"] and "conv0" not in params["codec"]["params"]
  assert drawn(model, params, [0], steps=1).shape == (1, 32, 32, 1)


@pytest.mark.slow
def test_ten_non_finite_updates_in_a_row_stop_the_run(experiment, tmp_path, monkeypatch):
  endless, loss = override(experiment, "autoencoder.steps", "30"), Reconstruction.loss

  def infinite(*arguments):
    losses, aux = loss(*arguments)
    return losses + np.inf, aux

  monkeypatch.setattr(Reconstruction, "loss", infinite)
  with pytest.raises(NonFiniteError, match=r"10 non-finite updates in a row, up to step 10; .*checkpoint"):
    train(endless, tmp_path / "w", devices=1)
  with Checkpoints(workdirs.checkpoints_folder(tmp_path / "w", "autoencoder"), read_only=True) as saved:
    assert saved.steps() == [], "it saves every 2 steps, and no step was good"


@pytest.mark.slow
def test_bfloat16_accumulation_and_remat_train(tmp_path):
  experiment = shrunk(config("digits"), 4)
  for path, text in (
    ("autoencoder.objective.network.dtype", "bfloat16"),
    ("denoiser.objective.network.dtype", "bfloat16"),
    ("denoiser.accumulate", "2"),
    ("denoiser.objective.network.remat", "dots"),
  ):
    experiment = override(experiment, path, text)
  train(experiment, tmp_path / "w", devices=2)
  model, params = load(tmp_path / "w")
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
  assert drawn(model, params, [1, 2], steps=2).shape == (2, 32, 32, 1)


@pytest.mark.slow
def test_power_averages_are_kept_and_made_into_others(unbroken, experiment, tmp_path):
  """Three widths are tracked; the third, left out, is made of the other two, and comes out as it was
  tracked.
  """
  workdir = tmp_path / "w"
  powers = override(experiment, "denoiser.ema", "Power((0.05, 0.10, 0.20))")
  workdirs.claim_workdir(workdir, powers)
  for part in ("autoencoder", "latents", "conditions"):
    shutil.copytree(unbroken / part, workdir / part)
  train(powers, workdir, devices=1)
  tracked = {width: load(workdir, width)[1]["denoiser"] for width in (0.05, 0.20)}
  plain = load(workdir)[1]["denoiser"]
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(tracked[0.05])):
    np.testing.assert_allclose(
      a, b, rtol=1e-6, atol=1e-9, err_msg="the first average is what is sampled with"
    )
  with Checkpoints(workdirs.averages_folder(workdir, "denoiser"), read_only=True) as kept:
    assert kept.steps() == list(range(1, STEPS + 1)) and kept.items(STEPS) == ["0.05", "0.1", "0.2"]
  for item in workdirs.averages_folder(workdir, "denoiser").glob("*/0.2"):
    shutil.rmtree(item)
  for manifest in workdirs.averages_folder(workdir, "denoiser").glob("*.manifest.json"):
    content = json.loads(manifest.read_text())
    content["files"] = {
      name: value for name, value in content["files"].items() if not name.startswith("0.2/")
    }
    manifest.write_text(json.dumps(content))
  made = load(workdir, 0.20)[1]["denoiser"]
  largest = max(np.abs(x).max() for x in jax.tree.leaves(tracked[0.20]))
  for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(tracked[0.20])):
    np.testing.assert_allclose(a, b, atol=1e-6 * largest)
  with pytest.raises(
    UserError, match=r"kept no averages; train with --set 'denoiser.ema=Power\(\(0.05, 0.1\)\)'"
  ):
    load(unbroken, 0.1)


@pytest.mark.slow
def test_every_option_at_once(experiment, unbroken, tmp_path):
  """A U-Net on another process, with all that a denoiser may learn besides, and optimizer parts by regex."""
  changes = {
    "network": "UNet(widths=(4, 8), resnets=1, attention=(False, True), heads=2, groups=2, classes=10, "
    "log_variance=True, "
    "self_conditioning=True)",
    "process": "EDM()",
    "parametrization": "Precondition()",
    "times": "LogNormalSigma(-0.5)",
    "weighting": "MinSNR()",
    "offset_noise": "0.1",
    "self_conditioning": "0.5",
    "direction_weight": "0.1",
  }
  changed = override(
    experiment, "denoiser.optimizer", "Muon(no_decay='bias$', frozen='^denoiser/in/', weight_decay=0.1)"
  )
  for name, text in changes.items():
    changed = override(changed, f"denoiser.objective.{name}", text)
  workdir = tmp_path / "w"
  workdirs.claim_workdir(workdir, changed)
  for part in ("autoencoder", "latents", "conditions"):
    shutil.copytree(unbroken / part, workdir / part)
  train(changed, workdir, devices=1)
  model, params = load(workdir)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  images = drawn(model, params, [0, -1], steps=2, size=(64, 32))
  assert images.shape == (2, 64, 32, 1)
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert {"loss", "mse"} <= set(rows[0])


@pytest.mark.slow
def test_an_autoencoder_trained_with_lpips_and_a_discriminator(experiment, tmp_path):
  rng = np.random.default_rng(0)
  drawn = {
    name: np.float32(0.1 * np.abs(rng.normal(size=shape)))
    for name, shape in perceptual.lpips_shapes("alex").items()
  }
  safetensors.write(tmp_path / "alex.safetensors", drawn)
  weighted = override(experiment, "autoencoder.objective.perceptual_weight", "0.5")
  weighted = override(weighted, "autoencoder.objective.lpips", str(tmp_path / "alex.safetensors"))
  stage = weighted.stage("autoencoder")
  adversarial = Adversarial(
    inner=stage.objective, discriminator=PatchDiscriminator(widths=(4,), groups=2), start_step=0
  )
  for objective in (stage.objective, adversarial):
    changed = weighted.with_stage(dataclasses.replace(stage, objective=objective, steps=2))
    workdir = tmp_path / type(objective).__name__
    train(changed, workdir, ("autoencoder",), devices=1)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["perceptual"] > 0 and np.isfinite([row["loss"] for row in rows if "loss" in row]).all()


@pytest.mark.slow
@pytest.mark.parametrize("conditioner", ["Masked()", "Paired(degradation=Mixture(), dropout=0.2)"])
def test_with_a_condition_interrupted_or_not_it_ends_with_the_same_bits(
  experiment, unbroken, tmp_path, monkeypatch, conditioner
):
  changed = claimed_with(experiment, conditioner, unbroken, tmp_path / "a")
  train(changed, tmp_path / "a", devices=1)
  assert (tmp_path / "a" / "images" / "denoiser-000006.png").exists()
  claimed_with(experiment, conditioner, unbroken, tmp_path / "b")

  def interrupt(log, step, state, metrics):
    if step == 5:
      raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(Log, "write", interrupt)
    with pytest.raises(Stop):
      train(changed, tmp_path / "b", devices=1)
  train(changed, tmp_path / "b", devices=1)
  assert_same_end(tmp_path / "a", tmp_path / "b")
  model, params = load(tmp_path / "b")
  assert drawn(model, params, [1], steps=2).shape == (1, 32, 32, 1), (
    "it was dropped for a share of the examples"
  )
  always = tuple(dataclasses.replace(each, dropout=0.0) for each in model.objective.conditioners)
  model = dataclasses.replace(model, objective=dataclasses.replace(model.objective, conditioners=always))
  with pytest.raises(
    UserError, match=f"always trained with '{always[-1].name}', .* and cannot sample without"
  ):
    drawn(model, params, [1], steps=2)


@pytest.mark.slow
def test_an_imported_autoencoder_is_used_as_it_is(on_imported, imported, tmp_path, capsys):
  train(on_imported, tmp_path, devices=1)
  assert "codec: latents have" not in capsys.readouterr().out  # nothing was measured
  model, params = load(tmp_path)
  network, codec = load_codec(imported)
  assert model.codec == ImageCodec(network) and model.latent_shape == (16, 16, 2)
  jax.tree.map(np.testing.assert_array_equal, params["codec"], codec)
  np.testing.assert_array_equal(codec["mean"], np.float32([0.5, 0.5]))
  assert (tmp_path / "images" / f"denoiser-{STEPS:06d}.png").exists()
  train(on_imported, tmp_path, devices=1)  # nothing is left to train
  assert main(["sample", "--workdir", str(tmp_path), "--n", "2", "--out", str(tmp_path / "two.npz")]) == 0
  assert np.load(tmp_path / "two.npz")["images"].std() > 0


@pytest.mark.slow
def test_fine_tuning_starts_from_it_and_keeps_its_scale(on_imported, imported, tmp_path):
  network, codec = load_codec(imported)
  peak = 1e-3  # how far a step of Adam moves a parameter
  tuned = dataclasses.replace(
    on_imported.stage("denoiser"),
    name="autoencoder",
    needs=(),
    objective=Reconstruction(network=network),
    steps=1,
    start=str(imported),
    ema=Decay(0.0),
    optimizer=AdamW(schedule=Constant(peak=peak)),
  )
  train(on_imported.with_stage(tuned), tmp_path, ("autoencoder",), devices=1)
  after = load_codec(tmp_path)[1]
  np.testing.assert_array_equal(after["mean"], codec["mean"])
  np.testing.assert_array_equal(after["std"], codec["std"])
  moved = [
    np.abs(a - b).max() for a, b in zip(jax.tree.leaves(after["params"]), jax.tree.leaves(codec["params"]))
  ]
  assert 0 < max(moved) < 1.1 * peak
