"""Diffusion of pixels: every command on a workdir without an autoencoder."""

import dataclasses
import json

import jax
import numpy as np
from PIL import Image
import pytest

from jldm.cli import main
from jldm.config import serialize
from jldm.config.override import override
from jldm.core.errors import UserError
from jldm.inference.load import load, load_codec
from jldm.models.codecs.images import Identity
from jldm.runs.train import train
from tests.configs import config, shrunk
from tests.edits import quick_edits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experiment():
  actual = shrunk(config("digits_pixels"))
  return dataclasses.replace(actual, data=dataclasses.replace(actual.data, count=160))


@pytest.fixture(scope="module")
def workdir(experiment, tmp_path_factory):
  path = tmp_path_factory.mktemp("runs") / "w"
  train(experiment, path, devices=1)
  return path


def test_the_denoiser_alone_is_trained(workdir, experiment):
  assert experiment.names == ("denoiser",) and not (workdir / "autoencoder").exists()
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert {row["stage"] for row in rows} == {"denoiser"}
  assert (workdir / "images" / "denoiser-000002.png").exists()
  (cache,) = (workdir / "latents").glob("*/0-0")
  mean = np.load(cache / "mean.npy")
  images = experiment.data.open("train")[np.arange(160)]["image"]
  np.testing.assert_allclose(mean, images / 127.5 - 1, atol=1e-6)
  assert not (cache / "log_variance.npy").exists(), "a point has no noise"
  before = (workdir / "metrics.jsonl").read_bytes()
  train(experiment, workdir, devices=1)
  assert (workdir / "metrics.jsonl").read_bytes() == before, "what is finished is not run again"


def test_it_is_loaded_with_a_codec_that_has_nothing_to_load(workdir):
  model, params = load(workdir)
  assert model.codec == Identity(mean=-0.4, std=0.7) and model.latent_shape == (8, 8, 1)
  assert {name: float(value) for name, value in params["codec"].items() if name in ("mean", "std")} == {
    "mean": pytest.approx(-0.4),
    "std": pytest.approx(0.7),
  }
  with pytest.raises(UserError, match="has no autoencoder; its stages are denoiser"):
    load_codec(workdir)


def test_pictures_are_sampled_edited_judged_and_reported(workdir, tmp_path, capsys):
  to = lambda name: ["--out", str(tmp_path / name)]
  common = ["--workdir", str(workdir), "--devices", "1"]
  assert main(["sample", *common, "--n", "3", "--label", "3", "--steps", "2", *to("O")]) == 0
  with Image.open(tmp_path / "O" / "00000.png") as picture:
    assert picture.size == (8, 8)
  mask = np.zeros((8, 8), np.uint8)
  mask[2:6, 2:6] = 255
  Image.fromarray(mask).save(tmp_path / "M.png")
  source = ["--workdir", str(workdir), "--image", str(tmp_path / "O" / "00000.png")]
  with quick_edits():
    assert (
      main(["edit", "inpaint", *source, "--mask", str(tmp_path / "M.png"), "--steps", "2", *to("E")]) == 0
    )
  options = ["--n", "20", "--extractor", "pixels", "--steps", "2", "--metrics", "kid"]
  assert main(["evaluate", *common, *options]) == 0
  assert [path.name for path in (workdir / "evaluation").glob("*.json")] == ["2.json"], (
    "there is nothing to reconstruct"
  )
  assert main(["report", str(workdir)]) == 0
  assert "Identity" in (workdir / "report.html").read_text()
  assert main(["info", str(workdir)]) == 0
  output = capsys.readouterr().out
  assert (
    "Identity(mean=-0.4, std=0.7, field='image')" in output
    and "denoiser: Diffusion, at step 2 of 2" in output
  )


def test_a_pixel_that_is_known_comes_back(workdir, tmp_path):
  """Inpainting knows places of latents as it knows pixels: each by itself."""
  model, _ = load(workdir)
  known = np.float32(np.random.default_rng(0).uniform(size=(1, 8, 8, 1)) < 0.5)
  np.testing.assert_array_equal(model.codec.latent_mask(known), known)


def test_as_one_file_and_back(workdir, tmp_path):
  assert main(["convert", str(workdir), str(tmp_path / "one.safetensors"), "--to", "jldm"]) == 0
  assert main(["convert", str(tmp_path / "one.safetensors"), str(tmp_path / "w"), "--to", "jldm"]) == 0
  jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "w")[1], load(workdir)[1])


@pytest.mark.parametrize(
  "command, message",
  [
    (["sample", "--tile", "4"], "tiles of Identity, which has no autoencoder; leave the tiles out"),
    (
      ["evaluate", "--stage", "autoencoder", "--extractor", "pixels"],
      "no stage 'autoencoder'; expected one of denoiser",
    ),
    (
      ["replay", "--steps", "1:2", "--stage", "autoencoder"],
      "no stage 'autoencoder'; expected one of denoiser",
    ),
    (["sample", "--size", "0x4"], "size"),
  ],
)
def test_what_it_cannot_do_is_one_line(workdir, capsys, command, message):
  assert main([*command, "--workdir", str(workdir)]) == 2
  lines = capsys.readouterr().err.strip().splitlines()
  assert len(lines) == 1 and message in lines[0]


def test_the_stage_that_there_is_not_is_not_trained(experiment, tmp_path):
  with pytest.raises(UserError, match="no stage 'autoencoder'; expected one of denoiser"):
    train(experiment, tmp_path / "w", ("autoencoder",), devices=1)


def test_any_experiment_becomes_one_of_pixels_by_an_option():
  actual = override(config("digits"), "denoiser.needs", "(Need('codec', Identity(mean=-0.4)),)")
  assert actual.stage("denoiser").needs[0].source == Identity(mean=-0.4)
  assert serialize.loads(serialize.dumps(actual)) == actual
  with pytest.raises(UserError, match="such as Identity"):
    override(config("digits"), "denoiser.needs", "(Need('codec', DDIM()),)")
