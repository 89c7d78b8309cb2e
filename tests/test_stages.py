"""Both stages, shrunk: interrupted or not they end with the same bits, and what is finished is not run again."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jldm import latents, pipeline, run as runs, stages, workdir as workdirs
from jldm.checkpoint import Checkpoints
from jldm.cli import main
from jldm.core.errors import NonFiniteError, UserError
from jldm.core.keys import row_keys
from jldm.data import cached_latents
from jldm.data.synthetic import Synthetic
from jldm.data.tfds import ImageData
from jldm.experiment import Pretrained, Stage, override
from jldm.interop import pretrained, safetensors
from jldm.metrics import perceptual
from jldm.models import codec as codecs
from jldm.models.autoencoders.discriminator import PatchDiscriminator
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.objectives.adversarial import Adversarial
from jldm.objectives.autoencoder import Reconstruction
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW, Constant
from jldm.train.parts import PerPart
from tests.configs import config, shrunk
from tests.networks import randomised

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
def test_an_autoencoder_with_a_discriminator(experiment, tmp_path):
  stage = experiment.autoencoder
  discriminator = PatchDiscriminator(widths=(4, 4), groups=2)
  objective = Adversarial(inner=stage.objective, discriminator=discriminator, start_step=2)
  stage = dataclasses.replace(stage, objective=objective, optimizer=PerPart(rest=stage.optimizer))
  experiment = dataclasses.replace(experiment, autoencoder=stage)
  stages.train(experiment, tmp_path / "w", devices=1)
  assert workdirs.read(tmp_path / "w") == experiment
  rows = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
  assert [row["adversarial_weight"] > 0 for row in rows if "d_loss" in row] == [False] * 3 + [True] * (STEPS - 3)
  model, params = pipeline.load(tmp_path / "w")
  assert "decoder" in params["codec"]["params"] and "conv0" not in params["codec"]["params"]
  assert pipeline.generate(model, params, [0], steps=1).shape == (1, 32, 32, 1)


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
    ("denoiser.accumulate", "2"), ("denoiser.objective.network.remat", "dots"),
  ):
    experiment = override(experiment, path, text)
  stages.train(experiment, tmp_path / "w", devices=2)
  model, params = pipeline.load(tmp_path / "w")
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
  assert pipeline.generate(model, params, [1, 2], steps=2).shape == (2, 32, 32, 1)


@pytest.mark.parametrize(("change", "told"), [
  ("parametrization=Predict('eps')", "Predict(kind='eps') says nothing about the data at t = 1 of Flow(); use Predict('v') or"),
  ("parametrization=Precondition()", "at t = 1 of Flow(); use Predict('v') or Predict('flow')"),
  ("network.classes=3", "data has 10 classes and the denoiser 3; --set denoiser.objective.network.classes=10"),
  ("network.patch=3", "latents of 4x4; expected sides divisible by patch=3"),
  ("network.self_conditioning=True", "expected a share such as 0.5 and True, or 0 and False"),
])
def test_what_could_not_be_sampled_is_not_trained(experiment, tmp_path, change, told):
  with pytest.raises(UserError) as error:
    stages.train(override(experiment, *f"denoiser.objective.{change}".split("=", 1)), tmp_path / "w", devices=1)
  assert told in str(error.value) and "\n" not in str(error.value)
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("path", "text", "told"), [
  ("denoiser.optimizer.frozen", "nothing_like_it", "frozen='nothing_like_it'"),
  ("autoencoder.optimizer.no_decay", "nothing_like_it", "no_decay='nothing_like_it'"),
])
def test_regexes_that_find_nothing_are_told_before_training(experiment, tmp_path, path, text, told):
  with pytest.raises(UserError) as error:
    stages.train(override(experiment, path, text), tmp_path / "w", devices=1)
  assert told in str(error.value) and not (tmp_path / "w").exists()


def test_an_average_that_is_a_number_is_told(experiment, tmp_path):
  number = dataclasses.replace(experiment, denoiser=dataclasses.replace(experiment.denoiser, ema=0.999))
  with pytest.raises(UserError, match=r"denoiser.ema=0.999; expected an average such as Decay\(0.999\)"):
    stages.train(number, tmp_path / "w", devices=1)


@pytest.mark.slow
def test_power_averages_are_kept_and_made_into_others(unbroken, experiment, tmp_path):
  """Three widths are tracked; the third, left out, is made of the other two, and comes out as it was tracked."""
  import shutil
  workdir = tmp_path / "w"
  powers = override(experiment, "denoiser.ema", "Power((0.05, 0.10, 0.20))")
  workdirs.claim(workdir, powers)
  for part in ("autoencoder", "latents"):
    shutil.copytree(unbroken / part, workdir / part)
  stages.train(powers, workdir, devices=1)
  tracked = {width: pipeline.load(workdir, width)[1]["denoiser"] for width in (0.05, 0.20)}
  plain = pipeline.load(workdir)[1]["denoiser"]
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(tracked[0.05])):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9, err_msg="the first average is what is sampled with")
  with Checkpoints(workdirs.averages(workdir, "denoiser"), read_only=True) as kept:
    assert kept.steps() == list(range(1, STEPS + 1)) and kept.items(STEPS) == ["0.05", "0.1", "0.2"]
  for item in workdirs.averages(workdir, "denoiser").glob("*/0.2"):
    shutil.rmtree(item)
  for manifest in workdirs.averages(workdir, "denoiser").glob("*.manifest.json"):
    said = json.loads(manifest.read_text())
    said["files"] = {name: value for name, value in said["files"].items() if not name.startswith("0.2/")}
    manifest.write_text(json.dumps(said))
  made = pipeline.load(workdir, 0.20)[1]["denoiser"]
  largest = max(np.abs(x).max() for x in jax.tree.leaves(tracked[0.20]))
  for a, b in zip(jax.tree.leaves(made), jax.tree.leaves(tracked[0.20])):
    np.testing.assert_allclose(a, b, atol=1e-6 * largest)
  with pytest.raises(UserError, match=r"kept no averages; train with --set 'denoiser.ema=Power\(\(0.05, 0.1\)\)'"):
    pipeline.load(unbroken, 0.1)


@pytest.mark.slow
def test_every_option_at_once(experiment, unbroken, tmp_path):
  """A U-Net on another process, with all that a denoiser may learn besides, and optimizer parts by regex."""
  import shutil
  changes = {
    "network": "UNet(widths=(4, 8), resnets=1, attention=(False, True), heads=2, groups=2, classes=10, log_variance=True, "
               "self_conditioning=True)",
    "process": "EDM()", "parametrization": "Precondition()", "times": "LogNormalSigma(-0.5)", "weighting": "MinSNR()",
    "offset_noise": "0.1", "self_conditioning": "0.5", "direction": "0.1",
  }
  changed = override(experiment, "denoiser.optimizer", "Muon(no_decay='bias$', frozen='^in/', weight_decay=0.1)")
  for name, text in changes.items():
    changed = override(changed, f"denoiser.objective.{name}", text)
  workdir = tmp_path / "w"
  workdirs.claim(workdir, changed)
  for part in ("autoencoder", "latents"):
    shutil.copytree(unbroken / part, workdir / part)
  stages.train(changed, workdir, devices=1)
  model, params = pipeline.load(workdir)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  images = pipeline.generate(model, params, [0, -1], steps=2, devices=1, size=(64, 32))
  assert images.shape == (2, 64, 32, 1)
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert {"loss", "mse"} <= set(rows[0])


@pytest.mark.slow
def test_pictures_of_several_shapes_mirrored_and_partly_labelled(experiment, tmp_path):
  data = Synthetic(channels=1, classes=10, count=40, buckets=((16, 48), (48, 16)), mirror=True, labelled=0.5)
  stages.train(dataclasses.replace(experiment, data=data), tmp_path / "w", devices=1)
  cache = cached_latents.open_cache(next((tmp_path / "w" / "latents").iterdir()))
  shapes = {source[np.array([0])]["mean"].shape[1:3] for source in cache.sources}
  assert shapes == {(4, 4), (2, 6), (6, 2)} and len(cache) == 80
  labels = np.concatenate([source[np.arange(len(source))]["label"] for source in cache.sources])
  assert (labels >= 0).sum() == 40
  assert pipeline.generate(*pipeline.load(tmp_path / "w"), [3], steps=2, size=(48, 16), devices=1).shape == (1, 48, 16, 1)


@pytest.mark.parametrize(("change", "told"), [
  (("perceptual_weight", "0.5"), "perceptual_weight=0.5 without weights; set lpips to a file that jldm convert"),
  (("lpips", "nowhere.safetensors"), "cannot read 'nowhere.safetensors'"),
])
def test_lpips_weights_are_looked_for_before_training(experiment, tmp_path, change, told):
  weighted = override(experiment, "autoencoder.objective.perceptual_weight", "0.5")
  with pytest.raises(UserError) as error:
    stages.train(override(weighted, f"autoencoder.objective.{change[0]}", change[1]), tmp_path / "w", devices=1)
  assert told in str(error.value) and not (tmp_path / "w").exists()


@pytest.mark.slow
def test_an_autoencoder_trained_with_lpips_and_a_discriminator(experiment, tmp_path):
  rng = np.random.default_rng(0)
  drawn = {name: np.float32(0.1 * np.abs(rng.normal(size=shape))) for name, shape in perceptual.shapes("alex").items()}
  safetensors.write(tmp_path / "alex.safetensors", drawn)
  weighted = override(experiment, "autoencoder.objective.perceptual_weight", "0.5")
  weighted = override(weighted, "autoencoder.objective.lpips", str(tmp_path / "alex.safetensors"))
  stage = weighted.autoencoder
  adversarial = Adversarial(inner=stage.objective, discriminator=PatchDiscriminator(widths=(4,), groups=2), start_step=0)
  for objective in (stage.objective, adversarial):
    changed = dataclasses.replace(weighted, autoencoder=dataclasses.replace(stage, objective=objective, steps=2))
    workdir = tmp_path / type(objective).__name__
    stages.train(changed, workdir, ("autoencoder",), devices=1)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["perceptual"] > 0 and np.isfinite([row["loss"] for row in rows if "loss" in row]).all()


def with_condition(experiment, condition, unbroken, workdir):
  """The experiment with a condition, in a workdir whose autoencoder is trained."""
  import shutil
  changed = override(experiment, "denoiser.objective.condition", condition)
  workdirs.claim(workdir, changed)
  shutil.copytree(unbroken / "autoencoder", workdir / "autoencoder")
  return changed


def test_source_pictures_are_encoded_beside_their_targets(experiment, unbroken, tmp_path):
  """In the cache row i has the latents of picture i and of what is made of it, and another degradation is another cache."""
  changed = with_condition(experiment, "Paired(degradation=Mixture())", unbroken, tmp_path / "w")
  source = changed.data.open("train")
  model, mesh = pipeline.of(changed), runs.mesh_of(changed.denoiser, 1)
  codec = latents.committed_codec(model, tmp_path / "w", STEPS)
  run = runs.Run(changed, model, tmp_path / "w", 1)
  cache = latents.encoded(run, {"params": codec["params"]}, source, mesh)
  rows = cache[np.arange(len(source))]
  images = codecs.pixels(source[np.arange(len(source))]["image"])
  assert len(source) == 20 > changed.autoencoder.batch_size, "several batches, the last one short"
  keys = row_keys(jax.random.key(latents.SOURCE_SEED), np.arange(20))
  made = changed.denoiser.objective.condition.degradation(images, keys)
  encode = lambda images: np.asarray(codecs.encode(model.autoencoder, codec, images).mean)
  np.testing.assert_allclose(rows["mean"], encode(images), rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(rows["source"], encode(made), rtol=1e-3, atol=1e-4)
  assert (np.abs(rows["source"] - rows["mean"]).max((1, 2, 3)) > 0.01).all()
  others = ("Paired(degradation=Mixture((Noisy(),)))", "Paired(degradation=Noisy())", "Masked()", "None")
  hashes = {latents.codec_hash(codec, override(changed, "denoiser.objective.condition", other)) for other in others}
  assert len(hashes | {latents.codec_hash(codec, changed)}) == 5, "each has a cache of its own"
  assert {latents.codec_hash({"params": codec["params"]}, experiment)} == {path.name for path in (unbroken / "latents").iterdir()}


def test_a_condition_that_is_drawn_from_pictures_finds_them_beside_their_moments(experiment, unbroken, tmp_path):
  changed = with_condition(experiment, "Masked()", unbroken, tmp_path / "w")
  source, model = changed.data.open("train"), pipeline.of(changed)
  codec, mesh = latents.committed_codec(model, tmp_path / "w", STEPS), runs.mesh_of(changed.denoiser, 1)
  rows = latents.encoded(runs.Run(changed, model, tmp_path / "w", 1), {"params": codec["params"]}, source, mesh)[np.arange(20)]
  images = source[np.arange(20)]["image"]
  np.testing.assert_array_equal(rows["image"], images)
  np.testing.assert_allclose(rows["mean"], codecs.encode(model.autoencoder, codec, images).mean, rtol=1e-3, atol=1e-4)
  encoder = latents.handed(model, codec)
  np.testing.assert_allclose(encoder(images), codecs.standardised(encoder, rows["mean"]), rtol=1e-3, atol=1e-3)


def test_a_condition_that_does_not_fit_the_pictures_is_told_before_training(experiment, tmp_path):
  changed = override(experiment, "denoiser.objective.condition", "Paired(degradation=Downsampled(5))")
  with pytest.raises(UserError, match=r"pictures of 32x32; expected sides divisible by Downsampled\(factor=5\).factor"):
    stages.train(changed, tmp_path / "w", devices=1)
  assert not (tmp_path / "w").exists()


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["Masked()", "Paired(degradation=Mixture(), dropout=0.2)"])
def test_with_a_condition_interrupted_or_not_it_ends_with_the_same_bits(experiment, unbroken, tmp_path, monkeypatch, condition):
  changed = with_condition(experiment, condition, unbroken, tmp_path / "a")
  stages.train(changed, tmp_path / "a", devices=1)
  assert (tmp_path / "a" / "images" / "denoiser-000006.png").exists()
  with_condition(experiment, condition, unbroken, tmp_path / "b")

  def interrupt(log, step, state, metrics):
    if step == 5:
      raise Stop

  with monkeypatch.context() as patch:
    patch.setattr(stages.Log, "write", interrupt)
    with pytest.raises(Stop):
      stages.train(changed, tmp_path / "b", devices=1)
  stages.train(changed, tmp_path / "b", devices=1)
  assert_same_end(tmp_path / "a", tmp_path / "b")
  with pytest.raises(UserError, match="cannot draw without one"):
    pipeline.generate(*pipeline.load(tmp_path / "b"), [1])


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  """A workdir made of a folder of diffusers, of grey pictures and with a scale of its own."""
  folder = tmp_path_factory.mktemp("imported")
  network = KLAutoencoder(channels=1, latent_channels=2, widths=(4, 4), resnets=1, groups=2)
  shapes = codecs.shapes(network)
  vector = np.ones(2, np.float32)
  pretrained.save(folder / "vae", network, randomised(shapes) | {"mean": 0.5 * vector, "std": 3 * vector})
  assert main(["convert", str(folder / "vae"), str(folder / "w"), "--to", "jldm"]) == 0
  return folder / "w"


@pytest.fixture(scope="module")
def on_imported(experiment, imported, tmp_path_factory):
  """Digits, as they come with scikit-learn."""
  folder = str(tmp_path_factory.mktemp("data"))
  assert main(["prepare", "digits", "--data-dir", folder]) == 0
  data = ImageData(name="digits", data_dir=folder, train="train[:20]", held_out="train[20:40]", classes=10)
  return dataclasses.replace(experiment, data=data, autoencoder=Pretrained(str(imported)))


def test_an_imported_autoencoder_is_used_as_it_is(on_imported, imported, tmp_path, capsys):
  stages.train(on_imported, tmp_path, devices=1)
  assert "codec: latents have" not in capsys.readouterr().out  # nothing was measured
  model, params = pipeline.load(tmp_path)
  network, codec = pipeline.load_codec(imported)
  assert model.autoencoder == network and model.latent_shape == (16, 16, 2)
  jax.tree.map(np.testing.assert_array_equal, params["codec"], codec)
  np.testing.assert_array_equal(codec["mean"], np.float32([0.5, 0.5]))
  assert (tmp_path / "images" / f"denoiser-{STEPS:06d}.png").exists()
  stages.train(on_imported, tmp_path, devices=1)  # nothing is left to train
  assert main(["sample", "--workdir", str(tmp_path), "--n", "2", "--out", str(tmp_path / "two.npz")]) == 0
  assert np.load(tmp_path / "two.npz")["images"].std() > 0


@pytest.mark.slow
def test_fine_tuning_starts_from_it_and_keeps_its_scale(on_imported, imported, tmp_path):
  network, codec = pipeline.load_codec(imported)
  peak = 1e-3  # how far a step of Adam moves a parameter
  tuned = dataclasses.replace(
    on_imported.denoiser, objective=Reconstruction(network=network), steps=1, start=str(imported), ema=Decay(0.0),
    optimizer=AdamW(schedule=Constant(peak=peak)),
  )
  stages.train(dataclasses.replace(on_imported, autoencoder=tuned), tmp_path, ("autoencoder",), devices=1)
  after = pipeline.load_codec(tmp_path)[1]
  np.testing.assert_array_equal(after["mean"], codec["mean"])
  np.testing.assert_array_equal(after["std"], codec["std"])
  moved = [np.abs(a - b).max() for a, b in zip(jax.tree.leaves(after["params"]), jax.tree.leaves(codec["params"]))]
  assert 0 < max(moved) < 1.1 * peak


def test_what_an_imported_autoencoder_does_not_fit(on_imported, imported, tmp_path):
  replace = dataclasses.replace
  start = Stage(objective=Reconstruction(network=KLAutoencoder(channels=1, widths=(4, 8))), start=str(imported))
  for wrong, told in (
    (replace(on_imported, data=Synthetic(channels=3, classes=10)), "data has 3 channels and the autoencoder 1; make them equal"),
    (replace(on_imported, autoencoder=Pretrained(str(tmp_path / "no"))), "does not exist; expected a folder that train.py made"),
    (replace(on_imported, autoencoder=start), "has another network: autoencoder.objective.network.latent_channels: 2 -> 4"),
    (replace(on_imported, denoiser=replace(on_imported.denoiser, start="w")), "denoiser.start='w'; an autoencoder alone"),
    (replace(on_imported, autoencoder=replace(start, start="", steps=0)), "autoencoder.steps=0; expected at least 1"),
  ):
    with pytest.raises(UserError, match=told):
      stages.train(wrong, tmp_path / "w", devices=1)
  with pytest.raises(UserError, match="has no data or no denoiser; use its workdir in another: autoencoder=Pretrained"):
    pipeline.load(imported)
  assert not (tmp_path / "w").exists()
