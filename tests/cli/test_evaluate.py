"""`jldm evaluate` on a workdir of two shrunk steps: what is written and printed, the same digits
again, and mistakes.
"""

import argparse
import dataclasses
import json
from pathlib import Path
import re
import shutil

import numpy as np
from PIL import Image
import pytest

from jldm.cli import evaluate as evaluate_command, main
from jldm.core.errors import UserError
from jldm.data.synthetic import Synthetic
from jldm.evaluation import captions
from jldm.media import images as pictures
from jldm.metrics.extractors import extractor
from jldm.runs.train import train
from tests.configs import config, shrunk

OPTIONS = ["--n", "70", "--extractor", "pixels", "--steps", "2", "--guidance-scale", "0.9", "--devices", "1"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "w"
  experiment = shrunk(config("digits"))
  train(
    dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, count=160)), path, devices=1
  )
  return path


@pytest.fixture(scope="module")
def results(workdir):
  assert main(["evaluate", "--workdir", str(workdir), *OPTIONS]) == 0
  return {
    name: json.loads((workdir / "evaluation" / f"{name}.json").read_text()) for name in ("2", "autoencoder-2")
  }


@pytest.mark.slow
def test_everything_that_a_figure_depends_on_stands_beside_it(results):
  denoiser = results["2"]
  assert denoiser["samples"] == {
    "n": 70,
    "seed": 0,
    "sampler": "dpmpp_2m",
    "steps": 2,
    "grid": "uniform",
    "guidance_scale": 0.9,
  }
  assert denoiser["extractor"]["name"] == "pixels" and denoiser["extractor"]["width"] == 64
  assert denoiser["extractor"]["distance"] == "Fréchet distance"
  assert denoiser["reference"] == {"split": "train", "n": 160} and denoiser["real"] == {
    "split": "test",
    "n": 70,
  }
  assert {"jldm", "jax", "numpy", "python", "device"} <= denoiser["versions"].keys()
  assert denoiser["stage"] == "denoiser" and denoiser["step"] == 2 and denoiser["checkpoint"] == "latest"


@pytest.mark.slow
def test_samples_of_an_untrained_denoiser_are_far_from_real_ones(results):
  metrics = results["2"]["metrics"]
  assert metrics["frechet"]["low"] > metrics["frechet"]["real"]["high"]
  assert metrics["recall"]["high"] < 0.5 < metrics["recall"]["real"]["low"]
  assert (
    "agreement" not in metrics and results["2"]["left_out"]["agreement"] == "the extractor is no classifier"
  )
  assert all(each["n"] == each["real"]["n"] == 70 for each in metrics.values())


def test_reconstructions_in_all_and_by_class(results):
  actual = results["autoencoder-2"]
  assert {"psnr", "ssim", "reconstruction_frechet", "reconstruction_kid"} == actual["metrics"].keys()
  assert len(actual["classes"]) == 10 and sum(each["psnr"]["n"] for each in actual["classes"].values()) == 70
  mean = sum(each["psnr"]["value"] * each["psnr"]["n"] for each in actual["classes"].values()) / 70
  assert mean == pytest.approx(actual["metrics"]["psnr"]["value"])


def test_copies_are_looked_for_and_drawn(workdir, results):
  audit = results["2"]["memorisation"]
  assert audit["n"] == audit["held_out"] == 70 and audit["trained_on"] == 160
  assert len({pair["train"] for pair in audit["pairs"]}) == len(audit["pairs"]) <= 16, (
    "each training picture once"
  )
  ratios = [pair["to_train"] / pair["to_held_out"] for pair in audit["pairs"]]
  assert ratios == sorted(ratios) and {pair["sample"] for pair in audit["pairs"]} <= set(range(70))
  with Image.open(workdir / "evaluation" / "2-nearest.png") as sheet:
    assert sheet.size[0] <= 8 * 66 + 2 and sheet.size[1] in (3 * 66 + 2, 6 * 66 + 2)


def test_the_worst_reconstructions_are_drawn(workdir, results):
  path = workdir / "evaluation" / "autoencoder-2-worst.png"
  with Image.open(path) as sheet:
    assert sheet.size == (8 * 66 + 2, 4 * 66 + 2)
  assert pictures.read_provenance(path)["what"] == "worst reconstructions"


def test_the_same_seed_gives_the_same_bytes(workdir, results, tmp_path):
  before = {path.name: path.read_bytes() for path in (workdir / "evaluation").iterdir()}
  for path in (workdir / "evaluation").glob("features-*"):
    path.unlink()
  assert main(["evaluate", "--workdir", str(workdir), *OPTIONS]) == 0
  after = {path.name: path.read_bytes() for path in (workdir / "evaluation").iterdir()}
  assert {name: after[name] == each for name, each in before.items() if not name.endswith(".npz")} == {
    name: True for name in before if not name.endswith(".npz")
  }
  assert after.keys() == before.keys()


def test_another_seed_gives_others(workdir, results, capsys):
  options = ["--stage", "denoiser", "--seed", "1", "--metrics", "kid"]
  assert main(["evaluate", "--workdir", str(workdir), *OPTIONS, *options]) == 0
  actual = json.loads((workdir / "evaluation" / "2.json").read_text())
  assert (
    actual["metrics"].keys() == {"kid"}
    and actual["metrics"]["kid"]["value"] != results["2"]["metrics"]["kid"]["value"]
  )
  assert actual["metrics"]["kid"]["real"] == results["2"]["metrics"]["kid"]["real"]
  lines = capsys.readouterr().out.splitlines()
  assert "seed 1; features of pixels 1 (no weights), against 160 of train" in lines[0]
  assert lines[1].split() == ["value", "95", "%", "interval", "n", "real", "against", "real"]
  assert (
    lines[2].startswith("kernel distance (KID)")
    and lines[3].startswith("no copying is seen")
    and lines[4].startswith("in ")
  )


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--n", "64", "--metrics", "frechet"], "64 pictures for features of width 64"),
    (["--n", "5"], "--n 5; expected at least 20"),
    (["--n", "170"], "n=170, but 160 pictures are held out and 160 trained on; expected at most 160"),
    (["--extractor", "pixel"], "did you mean 'pixels'?"),
    (["--metrics", "fid"], "there is no 'fid'; expected a comma list of frechet"),
    (["--weights", "nowhere.safetensors"], "cannot read 'nowhere.safetensors'"),
    (["--best"], "keeps no best denoiser; train with --set evaluation.every_steps=1000"),
    (["--sampler", "dimm"], "sampler='dimm'; expected one of"),
    (["--seed", "-1"], "--seed=-1; expected a whole number from 0 to"),
    (["--data-dir", "x"], "has no data_dir"),
  ],
)
def test_mistakes_are_reported_in_one_line(workdir, capsys, options, message):
  assert main(["evaluate", "--workdir", str(workdir), *OPTIONS, "--stage", "denoiser", *options]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_what_was_trained_on_does_not_judge(workdir, tmp_path, capsys):
  shutil.copytree(workdir, tmp_path / "w")
  path = tmp_path / "w" / "experiment.json"
  path.write_text(path.read_text().replace('"held_out": "test"', '"held_out": "train"'))
  assert main(["evaluate", "--workdir", str(tmp_path / "w"), *OPTIONS]) == 2
  assert "both 'train', so nothing is held out" in capsys.readouterr().err


def test_weights_without_an_extractor_are_reported_those_that_there_are(workdir, capsys):
  assert main(["evaluate", "--workdir", str(workdir), "--weights", "w.safetensors"]) == 2
  error = capsys.readouterr().err
  assert "give --extractor, one of: " in error and "fashion (the middle 28x28 of grey pictures" in error


@pytest.mark.slow
def test_without_options_what_fits_the_data_is_chosen(workdir, tmp_path, capsys):
  shutil.copytree(workdir, tmp_path / "w")
  assert main(["evaluate", "--workdir", str(tmp_path / "w"), "--steps", "2", "--devices", "1"]) == 0
  line, *rest = capsys.readouterr().out.splitlines()
  assert line.startswith("chosen for these data: --extractor fashion for pictures of 32x32x1; --n 160 since ")
  results = json.loads((tmp_path / "w" / "evaluation" / "2.json").read_text())
  assert results["extractor"]["name"] == "fashion" and results["samples"]["n"] == 160
  assert "frechet" in results["metrics"] and not any("frechet is left out" in each for each in rest)


@pytest.mark.slow
def test_own_colour_pictures_of_which_few_are_held_out(tmp_path, capsys):
  images = np.random.default_rng(0).integers(0, 256, (60, 64, 64, 3), np.uint8)
  np.savez(tmp_path / "mine.npz", images=images)
  prepare = ["prepare", "npz", "--source", str(tmp_path / "mine.npz"), "--name", "mine"]
  assert main([*prepare, "--data-dir", str(tmp_path / "data")]) == 0
  experiment = config("photos_small")
  data = dataclasses.replace(experiment.data, data_dir=str(tmp_path / "data"))
  train(dataclasses.replace(shrunk(experiment), data=data), tmp_path / "w", devices=1)
  capsys.readouterr()
  common = ["evaluate", "--workdir", str(tmp_path / "w"), "--steps", "2", "--devices", "1"]
  assert main(common) == 0
  line = capsys.readouterr().out.splitlines()[0]
  assert (
    "--extractor pixels for pictures of 64x64x3; --n 28 since 3 pictures are held out and 57 trained on"
    in line
  )
  assert "since 28 pictures are too few for features of width 192" in line
  results = json.loads((tmp_path / "w" / "evaluation" / "2.json").read_text())
  assert {"kid", "recall", "duplicates"} <= results["metrics"].keys() and "frechet" in results["left_out"]
  assert main([*common, "--metrics", "frechet"]) == 2
  error = capsys.readouterr().err
  assert "28 pictures for features of width 192" in error and error.count("\n") == 1


def test_other_data_than_those_of_the_training_are_one_line(workdir, tmp_path, capsys, monkeypatch):
  shutil.copytree(workdir, tmp_path / "w")
  (tmp_path / "w" / "data.json").write_text('{"train": {"examples": 160, "digest": "a"}}')
  monkeypatch.setattr(
    Synthetic, "fingerprint", lambda self: {"train": {"examples": 160, "digest": "b"}}, raising=False
  )
  options = [*OPTIONS, "--stage", "denoiser", "--metrics", "kid"]
  assert main(["evaluate", "--workdir", str(tmp_path / "w"), *options]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "the data are not those that the run was trained on: data.train.digest: 'a' -> 'b'"


def test_the_scorer_of_the_page_is_one(monkeypatch):
  text = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text()
  monkeypatch.setattr(captions, "SCORERS", {})
  exec(re.findall(r"```python\n(.*?)```", text, re.S)[0], {})
  images = np.stack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 200, np.uint8)])
  record = captions.score(captions.find_scorer("bright"), images[[0, 1, 1]], ["dark", "bright", "dark"])
  assert record["bright"]["value"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_the_extractor_of_the_page_is_one(workdir, tmp_path, monkeypatch):
  """The example in docs/evaluation.md, in a workdir where it says."""
  text = (Path(__file__).resolve().parents[2] / "docs" / "evaluation.md").read_text()
  _, code = re.findall(r"```python\n(.*?)```", text, re.S)
  monkeypatch.setattr(extractor, "EXTRACTORS", dict(extractor.EXTRACTORS))
  monkeypatch.chdir(tmp_path)
  shutil.copytree(workdir, "runs/digits")
  exec(compile(code.replace('"200"', '"70"'), "evaluation.md", "exec"), {})
  results = json.loads(Path("runs/digits/evaluation/2.json").read_text())
  assert results["extractor"]["name"] == "some_pixels" and results["extractor"]["width"] == 16


@pytest.mark.parametrize(
  ("option", "value", "message"),
  [
    ("sampler", "ddim", "--sampler ddim: expected only with a stage that draws samples"),
    ("steps", 3, "--steps 3: expected only with a stage that draws samples"),
    ("grid", "karras", "--grid karras: expected only with a stage that draws samples"),
    ("guidance_scale", 2.0, "--guidance-scale 2.0: expected only with a stage that draws samples"),
    ("best", True, "--best: expected only with a stage that draws samples"),
    ("lpips", "l.safetensors", "--lpips l.safetensors: expected only with a stage that makes a codec"),
  ],
)
def test_options_of_what_is_not_judged_are_refused(option, value, message):
  names = ("sampler", "steps", "grid", "guidance_scale", "best", "lpips")
  args = argparse.Namespace(**dict.fromkeys(names) | {option: value})
  with pytest.raises(UserError) as error:
    evaluate_command.refuse_unused(args, None, None)
  assert message in str(error.value)
  evaluate_command.refuse_unused(args, "a stage", "a stage")
