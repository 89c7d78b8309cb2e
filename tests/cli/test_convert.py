"""`jldm convert`: a workdir into one file and back, LPIPS, extractors, and mistakes."""

import dataclasses
import fnmatch
import functools
import hashlib
import json
from pathlib import Path
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from jldm.cli import main
from jldm.inference.load import load, load_codec, load_finished
from jldm.inference.model import find_stage
from jldm.interop import denoisers, dit, locate, pretrained, safetensors
from jldm.metrics import perceptual
from jldm.metrics.extractors import dino, vit, weights
from jldm.metrics.extractors.extractor import EXTRACTORS, find_extractor, load_extractor
from jldm.runs.train import train
from jldm.samplers.guidance import FirstChannels
from jldm.storage import workdir as workdirs
from tests.interop.later import add_later
from tests.parity.drawn import SD, parameters, places
from tests.towers import write_tower

PARITY = SD.parent


@pytest.fixture(scope="module")
def workdir(unbroken):
  return unbroken


def refused(capsys, *argv) -> str:
  assert main(["convert", *map(str, argv)]) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and error.count("\n") == 1
  return error


@pytest.mark.slow
def test_a_workdir_into_one_file_and_back(workdir, tmp_path, capsys):
  file, again = tmp_path / "digits.safetensors", tmp_path / "again"
  assert main(["convert", str(workdir), str(file), "--to", "jldm"]) == 0
  assert main(["convert", str(file), str(again), "--to", "jldm"]) == 0
  assert "arrays" in capsys.readouterr().out
  (model, params), (other, back) = load(workdir), load(again)
  assert model == other and workdirs.read_experiment(again) == workdirs.read_experiment(workdir)
  assert jax.tree.structure(back) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, back, params)
  train(workdirs.read_experiment(again), again, devices=1)  # nothing is left to train
  assert "exists; choose another" in refused(capsys, file, workdir, "--to", "jldm")


@pytest.mark.slow
def test_parameters_that_do_not_fit_their_experiment(workdir, tmp_path, capsys):
  file = tmp_path / "digits.safetensors"
  assert main(["convert", str(workdir), str(file), "--to", "jldm"]) == 0
  metadata, arrays = safetensors.read_header(file).metadata, safetensors.read(file)
  safetensors.write(file, {name: value for name, value in arrays.items() if name != "codec/mean"}, metadata)
  assert "codec/mean is missing" in refused(capsys, file, tmp_path / "w", "--to", "jldm")
  safetensors.write(file, arrays, metadata | {"experiment": '{"class": "os.system"}'})
  assert "not an experiment" in refused(capsys, file, tmp_path / "w", "--to", "jldm")
  safetensors.write(file, arrays, {"kind": "params"})
  assert "no experiment in its metadata" in refused(capsys, file, tmp_path / "w", "--to", "jldm")
  assert not (tmp_path / "w").exists()


def test_lpips(tmp_path, capsys):
  """Of AlexNet by the package's names; that the numbers are right, tests/metrics/test_perceptual.py tells."""
  rng, theirs, places = np.random.default_rng(0), {}, (0, 3, 6, 8, 10)
  ours = {
    name: rng.normal(size=shape).astype(np.float32) for name, shape in perceptual.lpips_shapes("alex").items()
  }
  for i, place in enumerate(places, 1):
    theirs[f"net.slice{i}.{place}.weight"] = ours[f"conv{i}/kernel"].transpose(3, 2, 0, 1)
    theirs[f"net.slice{i}.{place}.bias"] = ours[f"conv{i}/bias"]
    theirs[f"lin{i - 1}.model.1.weight"] = ours[f"head{i}/weight"][None, :, None, None]
  safetensors.write(tmp_path / "theirs", theirs)
  assert "does not state its kind; give --kind" in refused(
    capsys, tmp_path / "theirs", tmp_path / "o", "--to", "jldm"
  )
  assert (
    main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours"), "--to", "jldm", "--kind", "lpips"])
    == 0
  )
  actual = safetensors.read(tmp_path / "ours")
  assert actual.keys() == ours.keys()
  for name, value in ours.items():
    np.testing.assert_array_equal(actual[name], value)
  perceptual.unpack_lpips(actual)


@pytest.fixture
def reduced(monkeypatch):
  """The extractor dinov2 with a network of one small block."""
  network = dataclasses.replace(dino.NETWORK, width=8, depth=1, heads=2, table=2)
  small = dataclasses.replace(dino.DINO, load=functools.partial(vit.load_vit, network, "dinov2"))
  monkeypatch.setitem(EXTRACTORS, "dinov2", small)
  names = {
    "embeddings.cls_token": (1, 1, 8),
    "embeddings.position_embeddings": (1, 5, 8),
    "embeddings.mask_token": (1, 8),
    "embeddings.patch_embeddings.projection.weight": (8, 3, 14, 14),
    "embeddings.patch_embeddings.projection.bias": (8,),
  }
  block = {f"attention.attention.{name}": (8, 8) for name in ("query", "key", "value")} | {
    "attention.output.dense": (8, 8),
    "mlp.fc1": (32, 8),
    "mlp.fc2": (8, 32),
    "norm1": (8,),
    "norm2": (8,),
  }
  for name, shape in block.items():
    names |= {f"encoder.layer.0.{name}.weight": shape, f"encoder.layer.0.{name}.bias": shape[:1]}
  names |= {f"encoder.layer.0.layer_scale{i}.lambda1": (8,) for i in (1, 2)}
  names |= {f"layernorm.{part}": (8,) for part in ("weight", "bias")}
  rng = np.random.default_rng(0)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in names.items()}


def test_an_extractor_says_of_which_file_it_is(reduced, tmp_path, capsys):
  theirs, ours = tmp_path / "theirs", tmp_path / "ours"

  def convert():
    ours.unlink(missing_ok=True)
    return main(["convert", str(theirs), str(ours), "--to", "jldm", "--kind", "dinov2"])

  safetensors.write(theirs, reduced)
  assert convert() == 0
  origin, arrays = hashlib.sha256(theirs.read_bytes()).hexdigest(), safetensors.read(ours)
  assert f"from a file of sha256 {origin}: not known as official" in capsys.readouterr().out
  metadata = safetensors.read_header(ours).metadata
  assert metadata == {
    "format": "jldm",
    "kind": "dinov2",
    "source": origin,
    "digest": weights.arrays_digest(arrays),
  }
  assert load_extractor(find_extractor("dinov2"), arrays, metadata).distance == "Fréchet distance"

  official = next(iter(weights.OFFICIAL))  # as the script writes it that reads the published file
  safetensors.write(theirs, reduced, {"source": official, "digest": weights.arrays_digest(reduced)})
  assert convert() == 0 and "official, for FID" in capsys.readouterr().out
  assert safetensors.read_header(ours).metadata["source"] == official
  safetensors.write(
    theirs, reduced | {"layernorm.bias": np.zeros(8, np.float32)}, safetensors.read_header(theirs).metadata
  )
  assert "was changed after it was made from a published file" in refused(
    capsys, theirs, tmp_path / "other", "--to", "jldm", "--kind", "dinov2"
  )


@pytest.mark.parametrize(
  "argv, message",
  [
    ((), "SOURCE, OUT, --to"),
    (("missing", "o", "--to", "jldm"), "'missing' does not exist; expected a folder that diffusers saved"),
    ((".", "o", "--to", "diffusers"), "'.' has no config.json"),
    (
      (".", "o", "--to", "diffusers", "--kind", "lpips"),
      "no such conversion; expected one of --kind params --to jldm, --kind lpips",
    ),
    ((".", "o", "--to", "torch"), "--to"),
    ((".", "o", "--to", "jldm", "--kind", "pixart"), "--kind"),
    (
      (".", "o", "--to", "jldm", "--kind", "lpips", "--codec", "vae"),
      "--codec vae: expected only with --kind dit, sit, repa, lightningdit; leave it out",
    ),
    (
      (".", "o", "--to", "jldm", "--kind", "dit"),
      "'.' has no config.json; expected a folder of diffusers' DiT",
    ),
    (
      (".", "o", "--to", "jldm", "--kind", "sit"),
      "'.' has no config.json; expected a folder of diffusers' DiT",
    ),
    (
      (".", "o", "--to", "jldm"),
      "has no experiment.json and no config.json; expected a workdir, or a folder that diffusers saved",
    ),
    ((".", "o", "--to", "jldm", "--kind", "lpips"), "cannot read '.'"),
  ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, argv, message):
  monkeypatch.chdir(tmp_path)
  assert message in refused(capsys, *argv)
  assert not list(tmp_path.iterdir())


def test_an_autoencoder_of_diffusers_into_a_workdir_and_back(tmp_path, capsys):
  workdir, out = tmp_path / "w", tmp_path / "out"
  assert main(["convert", str(SD), str(workdir), "--to", "jldm"]) == 0
  assert main(["convert", str(workdir), str(out), "--to", "diffusers"]) == 0
  assert "KLAutoencoder, 0.07 M parameters" in capsys.readouterr().out
  before, after = (safetensors.read(folder / locate.WEIGHTS) for folder in (SD, out))
  assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
  theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (SD, out))
  assert {name: theirs[name] for name in ours} == ours
  assert "exists; choose another" in refused(capsys, SD, workdir, "--to", "jldm")
  assert "exists; choose another" in refused(capsys, workdir, out, "--to", "diffusers")


NAME = "stabilityai/sd-vae-ft-mse"


@pytest.fixture
def hub(tmp_path, monkeypatch):
  """hub(download): huggingface_hub as a module with that snapshot_download; None: it is not installed."""
  monkeypatch.chdir(tmp_path)

  def replaced(download):
    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module if download else None)

  return replaced


@pytest.mark.parametrize("part", ["", "vae"])
def test_a_name_of_the_hub(part, hub, tmp_path):
  """Of all that a model has, its autoencoder alone is fetched."""
  remote, fetched = tmp_path / "remote", []
  shutil.copytree(SD, remote / part)
  for other in (
    "model_index.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.bin",
  ):
    (remote / other).parent.mkdir(exist_ok=True)
    (remote / other).touch()

  def download(repo, *, allow_patterns, etag_timeout):
    assert repo == NAME and etag_timeout <= 10
    for path in (path for path in remote.rglob("*") if path.is_file()):
      name = path.relative_to(remote).as_posix()
      if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
        fetched.append(name)
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "cache" / name)
    return str(tmp_path / "cache")

  hub(download)
  assert main(["convert", NAME, "w", "--to", "jldm"]) == 0
  assert sorted(fetched) == sorted(f"{part}/{file}".lstrip("/") for file in ("config.json", locate.WEIGHTS))
  actual, expected = load_codec(tmp_path / "w"), pretrained.read_pretrained(SD)
  assert actual[0] == expected[0]
  jax.tree.map(np.testing.assert_array_equal, actual[1], expected[1])


@pytest.mark.parametrize("part", ["", "vae"])
@pytest.mark.parametrize("variants", [("fp16",), ("", "fp16")])
def test_a_half_precision_variant_of_the_hub(variants, part, hub, tmp_path):
  """It is fetched if it is alone; else the full one is, and no other."""
  remote, fetched = tmp_path / "remote", []
  (remote / part).mkdir(parents=True)
  shutil.copy(SD / "config.json", remote / part)
  full = safetensors.read(SD / locate.WEIGHTS)
  for variant in variants:
    name = f"diffusion_pytorch_model.{variant}.safetensors".replace("..", ".")
    dtype = np.float16 if variant else np.float32
    safetensors.write(remote / part / name, {key: value.astype(dtype) for key, value in full.items()})

  def download(repo, *, allow_patterns, etag_timeout):
    for path in (path for path in remote.rglob("*") if path.is_file()):
      name = path.relative_to(remote).as_posix()
      if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
        fetched.append(path.name)
        (tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "cache" / name)
    return str(tmp_path / "cache")

  hub(download)
  assert main(["convert", NAME, "w", "--to", "jldm"]) == 0
  taken = locate.WEIGHTS if "" in variants else "diffusion_pytorch_model.fp16.safetensors"
  assert sorted(fetched) == ["config.json", taken]
  actual, expected = load_codec(tmp_path / "w"), pretrained.read_pretrained(remote / part / taken)
  assert actual[0] == expected[0]
  jax.tree.map(np.testing.assert_array_equal, actual[1], expected[1])


@pytest.mark.parametrize("name", [locate.WEIGHTS, locate.INDEX])
@pytest.mark.slow
def test_a_file_of_diffusers_by_its_path(name, tmp_path, capsys):
  folder = tmp_path / "vae"
  shutil.copytree(SD, folder)
  if name == locate.INDEX:
    (folder / locate.WEIGHTS).rename(folder / "x.safetensors")
    places = dict.fromkeys(safetensors.read(folder / "x.safetensors"), "x.safetensors")
    (folder / name).write_text(json.dumps({"weight_map": places}))
  assert main(["convert", str(folder / name), str(tmp_path / "w"), "--to", "jldm"]) == 0
  assert main(["convert", str(folder / name), str(tmp_path / "out"), "--to", "diffusers"]) == 0
  expected = pretrained.read_pretrained(SD)[1]
  for actual in (load_codec(tmp_path / "w")[1], pretrained.read_pretrained(tmp_path / "out")[1]):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_file_of_diffusers_without_its_config(tmp_path, capsys):
  path = shutil.copy(SD / locate.WEIGHTS, tmp_path)
  line = refused(capsys, path, tmp_path / "w", "--to", "jldm")
  kinds = (
    "params, lpips, autoencoder, text, pipeline, unet, inception, dinov2, clip, dit, sit, repa, lightningdit"
  )
  assert f"does not state its kind; give --kind, one of {kinds}, or put its config.json" in line


@pytest.mark.parametrize(
  "kind, name", [("dinov2", "embeddings.mask_token"), ("lpips", "classifier.0.weight")]
)
def test_later_dtypes_of_what_nobody_asks_for(kind, name, reduced, tmp_path):
  """The table leaves these out, so that their values are never read."""
  theirs, ours = tmp_path / "theirs", (tmp_path / "before", tmp_path / "after")
  rng = np.random.default_rng(0)
  backbone = {
    "net.slice1.0": (64, 3, 11, 11),
    "net.slice2.3": (192, 64, 5, 5),
    "net.slice3.6": (384, 192, 3, 3),
  }
  backbone |= {"net.slice4.8": (256, 384, 3, 3), "net.slice5.10": (256, 256, 3, 3)}
  lpips = {f"{layer}.weight": rng.normal(size=shape) for layer, shape in backbone.items()}
  lpips |= {f"{layer}.bias": rng.normal(size=shape[0]) for layer, shape in backbone.items()}
  lpips |= {
    f"lin{i}.model.1.weight": rng.normal(size=(1, shape[0], 1, 1))
    for i, shape in enumerate(backbone.values())
  }
  arrays = {"dinov2": {key: value for key, value in reduced.items() if key != name}, "lpips": lpips}[kind]
  safetensors.write(theirs, {key: np.float32(value) for key, value in arrays.items()})
  for out in ours:
    assert main(["convert", str(theirs), str(out), "--to", "jldm", "--kind", kind]) == 0
    if out == ours[0]:
      add_later(theirs, name, "F4")
  before, after = map(safetensors.read, ours)
  assert before.keys() == after.keys() and all(np.array_equal(before[key], after[key]) for key in before)


def test_later_dtypes_of_what_is_asked_for(reduced, tmp_path, capsys):
  theirs = tmp_path / "theirs"
  safetensors.write(theirs, {key: value for key, value in reduced.items() if key != "layernorm.bias"})
  add_later(theirs, "layernorm.bias", "F8_E8M0")
  line = refused(capsys, theirs, tmp_path / "o", "--to", "jldm", "--kind", "dinov2")
  assert "'layernorm.bias' of" in line and "has dtype F8_E8M0, none of BOOL" in line and "F64; give" in line


class DroppedError(Exception):
  """As a client of HTTP has them: no OSError."""


@pytest.mark.parametrize(
  "error",
  [
    FileNotFoundError(
      "An error happened while trying to locate the files on the Hub.\n" + 50 * "Check your connection. "
    ),
    ValueError("Repo id must use alphanumeric chars"),
    DroppedError("peer closed connection"),
    OSError("404 Client Error.\n\nNot Found"),
  ],
  ids=lambda error: type(error).__name__,
)
def test_a_name_that_the_hub_does_not_give(error, hub, tmp_path, capsys):
  def download(*args, **options):
    raise error

  hub(download)
  line = refused(capsys, NAME, "w", "--to", "jldm")
  assert (
    f"{NAME!r} is not here and cannot be downloaded from the hub; check the name and the network" in line
    and len(line) < 400
  )
  assert f"({type(error).__name__}: {str(error)[:12]}" in line
  assert not list(tmp_path.iterdir())


def test_a_name_of_the_hub_without_its_package(hub, tmp_path, capsys):
  hub(None)
  assert f"{NAME!r} does not exist here, and huggingface_hub" in refused(capsys, NAME, "w", "--to", "jldm")
  assert not list(tmp_path.iterdir())


def damaged(folder: Path, content: bytes) -> Path:
  folder.mkdir(exist_ok=True)
  shutil.copy(SD / "config.json", folder)
  (folder / locate.WEIGHTS).write_bytes(content)
  return folder


def test_a_file_cut_anywhere_is_one_line(tmp_path, capsys):
  whole = (SD / locate.WEIGHTS).read_bytes()
  for size in np.linspace(0, len(whole) - 1, 64).astype(int):
    assert "no sound safetensors file" in refused(
      capsys, damaged(tmp_path / "x", whole[:size]), tmp_path / "w", "--to", "jldm"
    )
  assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      lambda t: t.pop("quant_conv.bias"),
      "lacks 1 of 180 tensors: quant_conv.bias; give the config.json that belongs to it, or a whole file",
    ),
    (
      lambda t: t.update({"quant.bias": np.zeros(8)}),
      "has 1 tensors beyond the 180 of this network: quant.bias; give",
    ),
    (lambda t: t.update({"quant_conv.bias": np.zeros(7)}), "is [7], expected [8]; give"),
    (
      lambda t: t.update({"quant_conv.bias": np.zeros(8, np.int32)}),
      "is int32; expected float32, float16 or bfloat16: cast it",
    ),
    (
      lambda t: t.update({"quant_conv.bias": np.full(8, np.inf)}),
      "has 8 values that are not finite; give another file, or accept them: --allow-nan",
    ),
  ],
)
def test_tensors_that_do_not_fit_are_reported_by_name(change, message, tmp_path, capsys):
  tensors = dict(safetensors.read(SD / locate.WEIGHTS))
  change(tensors)
  folder = damaged(tmp_path / "x", b"")
  safetensors.write(folder / locate.WEIGHTS, tensors)
  line = refused(capsys, folder, tmp_path / "w", "--to", "jldm")
  assert message in line and "quant" in line
  if "not finite" in message:
    assert main(["convert", str(folder), str(tmp_path / "w"), "--to", "jldm", "--allow-nan"]) == 0


def test_a_file_of_compvis_needs_a_scale(tmp_path, capsys):
  names = {
    "encoder.down.0.block.0.conv2.weight": np.zeros((32, 32, 3, 3), np.float32),
    "loss.logvar": np.zeros(1),
  }
  safetensors.write(tmp_path / "x.safetensors", names)
  assert "lacks decoder.conv_in.weight" in refused(
    capsys, tmp_path / "x.safetensors", tmp_path / "w", "--to", "jldm"
  )


@pytest.mark.parametrize("kind", ["params", "lpips", "autoencoder", "dinov2"])
def test_an_out_that_exists_stays_whatever_the_kind(tmp_path, capsys, kind):
  out = tmp_path / "out.safetensors"
  out.write_text("somebody's")
  reason = refused(capsys, tmp_path / "none", out, "--to", "jldm", "--kind", kind)
  assert "out.safetensors' exists; choose another OUT" in reason and out.read_text() == "somebody's"


@pytest.mark.parametrize("option", [["--scaling-factor", "2"], ["--shift-factor", "1"], ["--allow-nan"]])
@pytest.mark.parametrize("kind", ["params", "lpips", "dinov2"])
def test_options_of_a_published_autoencoder_are_of_no_other_kind(tmp_path, capsys, kind, option):
  reason = refused(capsys, tmp_path / "none", tmp_path / "o", "--to", "jldm", "--kind", kind, *option)
  assert f"{option[0]}" in reason and "expected only with a published autoencoder" in reason


def test_an_out_in_no_folder_that_can_be_written_is_refused_before_the_work(tmp_path, capsys):
  (tmp_path / "file").write_text("in the way")
  reason = refused(capsys, tmp_path / "none", tmp_path / "file" / "o", "--to", "jldm", "--kind", "lpips")
  assert "cannot write to OUT" in reason


def transformer(path: Path, family: str = "dit") -> Path:
  """A small file in its authors' names, of the shapes that tests/parity/dit.npz keeps."""
  saved = json.loads(str(np.load(PARITY / "dit.npz")["told"]))[family]
  safetensors.write(path, parameters(saved["shapes"], saved["seed"]) | {"pos_embed": places(4, 32)})
  return path


def convert_transformer(path: Path, out: Path, family: str, *options: str) -> list[str]:
  words = ["convert", str(path), str(out), "--to", "jldm", "--kind", family, "--heads", "2"]
  return [*words, *map(str, options)]


@pytest.mark.slow
@pytest.mark.parametrize("family", dit.FAMILIES)
def test_a_transformer_and_its_autoencoder_draw_samples(family, tmp_path, capsys):
  """Process, prediction, time, guidance and the scale of latents are those of the family."""
  file, out, stats = transformer(tmp_path / "x", family), tmp_path / "w", tmp_path / "stats"
  mean, std = np.float32([[[[1]], [[2]], [[3]], [[4]]]]), np.float32([1, 2, 3, 4])
  safetensors.write(stats, {"mean": mean, "std": std})
  own = ("--latents-stats", stats) if family == "lightningdit" else ()
  assert main(convert_transformer(file, out, family, "--codec", SD, *own)) == 0
  assert "a workdir to sample from, DiT, 0.0" in capsys.readouterr().out
  if family in ("dit", "lightningdit"):
    words = ["sample", "--workdir", str(out), "--label", "7", "--n", "2", "--steps", "2", "--devices", "1"]
    assert main([*words, "--out", str(tmp_path / "s.npz")]) == 0
    assert np.load(tmp_path / "s.npz")["images"].shape == (2, 64, 64, 3)
  model, params = load(out)
  rules, objective = dit.FAMILIES[family], model.objective
  assert (objective.process, objective.parametrization) == (rules.process, rules.parametrization)
  theirs = denoisers.read_dit(file, family, 2)
  jax.tree.map(np.testing.assert_array_equal, params["denoiser"], theirs.params)
  wanted = (mean.ravel(), std) if own else (np.zeros(4), np.full(4, 1 / np.float32(0.18215)))
  np.testing.assert_allclose(params["codec"]["mean"], wanted[0])
  np.testing.assert_allclose(params["codec"]["std"], wanted[1], rtol=1e-6)
  guidance = workdirs.read_experiment(out).sampling.guidance
  assert isinstance(guidance, FirstChannels) == bool(rules.channels) == (family != "repa")


@pytest.mark.parametrize(
  ("family", "options", "message"),
  [
    ("dit", (), "has no autoencoder; give --codec"),
    ("lightningdit", ("--codec", SD), "--kind lightningdit without --latents-stats; expected"),
    ("dit", ("--codec", PARITY / "tiny_flux"), "--codec has latents of 16 channels, and "),
    ("dit", ("--codec", "nowhere"), "'nowhere' does not exist"),
    ("dit", ("--codec", SD, "--as-diffusers"), "--as-diffusers: "),
    ("dit", ("--codec", "codec", "--scaling-factor", 2), "--scaling-factor 2.0: --codec, a workdir, has it"),
    (
      "dit",
      ("--codec", SD, "--latents-stats", "flat", "--shift-factor", 1),
      "--shift-factor 1.0: --latents-stats has it already; leave it out",
    ),
    ("dit", ("--codec", SD, "--latents-stats", "stats"), "'stats' has 3 values of mean; expected 4, one per"),
    (
      "dit",
      ("--codec", SD, "--latents-stats", "flat"),
      "'flat' has a std of 0; expected finite numbers, std",
    ),
    ("repa", ("--codec", SD), "lacks 2 of 31 tensors"),
  ],
)
def test_a_transformer_that_cannot_be_converted(family, options, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  safetensors.write(tmp_path / "stats", {"mean": np.zeros(3, np.float32), "std": np.ones(4, np.float32)})
  safetensors.write(tmp_path / "flat", {"mean": np.zeros(4, np.float32), "std": np.zeros(4, np.float32)})
  (tmp_path / "codec").mkdir()
  (tmp_path / "codec" / "experiment.json").touch()
  file = transformer(tmp_path / "x", "lightningdit" if family == "lightningdit" else "dit")
  if family == "repa":
    arrays = safetensors.read(file)
    safetensors.write(file, {name: value for name, value in arrays.items() if "t_embedder.mlp.2" not in name})
  assert main(convert_transformer(file, tmp_path / "w", family, *options)) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1 and not (tmp_path / "w").exists()


def test_a_folder_of_a_transformer_states_its_kind(tmp_path, capsys):
  (tmp_path / "f").mkdir()
  safetensors.write(tmp_path / "f" / locate.WEIGHTS, {"x": np.zeros(1, np.float32)})
  (tmp_path / "f" / locate.CONFIG).write_text(
    json.dumps({"_class_name": dit.CLASS, "norm_type": "layer_norm"})
  )
  message = refused(capsys, tmp_path / "f", tmp_path / "w", "--to", "jldm", "--codec", SD)
  assert "config.json has norm_type=layer_norm; expected 'ada_norm_zero'" in message


def test_a_text_encoder_keeps_its_model_card_and_the_dtype_that_it_is_read_in(tmp_path):
  card = write_tower(tmp_path / "text_encoder") / "README.md"
  card.write_text("---\nlicense: openrail\n---\n")
  words = ["convert", str(tmp_path / "text_encoder"), str(tmp_path / "clip"), "--to", "jldm"]
  assert main([*words, "--dtype", "bfloat16"]) == 0
  loaded = load_finished(find_stage(tmp_path / "clip", "text"))
  assert loaded.model.dtype == "bfloat16"
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {"bfloat16"}
  assert main(["convert", str(tmp_path / "clip"), str(tmp_path / "again"), "--to", "diffusers"]) == 0
  entries = safetensors.read_header(tmp_path / "again" / "model.safetensors").entries.values()
  assert {entry.dtype for entry in entries} == {"BF16"}
  for folder in ("clip", "again"):
    assert (tmp_path / folder / "README.md").read_bytes() == card.read_bytes()


def test_a_dtype_of_what_has_none_is_refused(tmp_path, capsys):
  words = ["convert", str(tmp_path), str(tmp_path / "out"), "--kind", "autoencoder", "--to", "diffusers"]
  assert main([*words, "--dtype", "bfloat16"]) == 2
  assert "--dtype bfloat16" in capsys.readouterr().err and not (tmp_path / "out").exists()
