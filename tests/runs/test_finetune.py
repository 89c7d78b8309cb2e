"""configs/sd15_finetune.py: from a published pipeline and captioned pictures to a U-Net for diffusers."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jldm.cli import main
from jldm.config import serialize
from jldm.config.experiment import Experiment, Stage
from jldm.core.errors import UserError
from jldm.core.trees import count
from jldm.data.tfds import ImageData
from jldm.inference.load import load
from jldm.inference.model import build_model, denoiser_shapes
from jldm.interop import denoisers, locate, safetensors
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.tower import Tower
from jldm.runs.train import train
from jldm.storage import workdir as workdirs
from jldm.train.logging import read_rows
from tests.configs import config
from tests.finetune import NAME, fixture_sized, make_home
from tests.towers import write_tokenizer

LATENT = 8  # side of the fixture's latents


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  folder = tmp_path_factory.mktemp("finetune")
  make_home(folder)
  return folder


@pytest.fixture(scope="module")
def tuned(home):
  """The workdir after two steps."""
  train(fixture_sized(home), home / "tuned", devices=1)
  return home / "tuned"


@pytest.mark.slow
def test_two_steps_change_the_u_net_alone(home, tuned, tmp_path):
  before, after = load(home / "sd")[1], load(tuned)[1]
  assert {"denoiser", "codec", "text"} == set(after)
  for part in ("codec", "text"):
    jax.tree.map(np.testing.assert_array_equal, after[part], before[part])
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before["denoiser"], after["denoiser"])
  assert max(jax.tree.leaves(moved)) > 0 and max(jax.tree.leaves(moved)) < 1e-3
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(after)} == {"float32"}
  words = ["sample", "--workdir", str(tuned), "--prompt", "a red cat|blurred", "--n", "2", "--devices", "1"]
  assert main([*words, "--out", str(tmp_path / "drawn.npz")]) == 0
  drawn = np.load(tmp_path / "drawn.npz")
  assert drawn["images"].shape == (2, 16, 16, 3) and drawn["prompts"].tolist() == ["a red cat", "blurred"]


@pytest.mark.slow
def test_it_is_exported_as_it_was_published(home, tuned, tmp_path, capsys):
  out = tmp_path / "unet"
  assert main(["convert", str(tuned), str(out), "--kind", "unet", "--to", "diffusers"]) == 0
  assert "a folder for diffusers, UNet, 0.20 M parameters" in capsys.readouterr().out
  theirs = safetensors.read_header(home / "published" / "unet" / locate.WEIGHTS).entries
  ours = safetensors.read_header(out / locate.WEIGHTS).entries
  assert {name: each.shape for name, each in ours.items()} == {
    name: each.shape for name, each in theirs.items()
  }
  published = json.loads((home / "published" / "unet" / locate.CONFIG).read_text())
  written = json.loads((out / locate.CONFIG).read_text())
  assert {
    name: published[name] for name in written if name in published and name != "_diffusers_version"
  } == {name: written[name] for name in written if name in published and name != "_diffusers_version"}
  read = denoisers.read_unet(out, "eps")
  assert read.latent == (LATENT, LATENT, 4)
  jax.tree.map(np.testing.assert_array_equal, read.params, load(tuned)[1]["denoiser"])
  half = tmp_path / "half"
  words = ["convert", str(tuned), str(half), "--kind", "unet", "--to", "diffusers", "--dtype", "bfloat16"]
  assert main(words) == 0
  assert {each.dtype for each in safetensors.read_header(half / locate.WEIGHTS).entries.values()} == {"BF16"}


@pytest.mark.slow
def test_its_loss_falls(home):
  """Random parameters as large as those of the fixture predict badly; what is learned is the data."""
  train(fixture_sized(home, steps=60), home / "longer", devices=1)
  rows = [row for _, row in read_rows(home / "longer" / "metrics.jsonl")]
  losses = [row["loss"] for row in rows if "loss" in row]
  assert len(losses) == 60 and np.mean(losses[-20:]) < 0.5 * np.mean(losses[:5])


@pytest.mark.slow
def test_another_network_is_refused(home, tmp_path):
  experiment = fixture_sized(home)
  (stage,) = experiment.stages
  wider = dataclasses.replace(stage.objective, network=stage.objective.network.clone(widths=(24, 32)))
  experiment = dataclasses.replace(experiment, stages=(dataclasses.replace(stage, objective=wider),))
  with pytest.raises(UserError, match=r"has another network: denoiser.objective.network.widths"):
    train(experiment, tmp_path / "w", devices=1)


@pytest.mark.slow
def test_the_config_is_of_stable_diffusion_15(tmp_path, monkeypatch):
  """A workdir of its networks is there by name alone, no parameter of it."""
  monkeypatch.chdir(tmp_path)
  experiment = config(NAME)
  (stage,) = experiment.stages
  (text,) = stage.objective.conditioners
  published = (
    Stage(name="autoencoder", objective=Reconstruction(network=KLAutoencoder()), steps=0),
    Stage(name="text", objective=Tower(network=text.tower), steps=0),
    Stage(name="denoiser", objective=stage.objective, steps=0),
  )
  workdirs.claim_workdir(
    tmp_path / "runs" / "sd15", Experiment(data=ImageData(name="captioned"), stages=published)
  )
  assert serialize.loads(serialize.dumps(experiment)) == experiment
  write_tokenizer(tmp_path / "runs" / "sd15" / "tokenizer", length=77)
  model = build_model(experiment)
  assert model.latent_shape == (64, 64, 4) and count(denoiser_shapes(model)) == 859_520_964


def test_a_denoiser_of_another_kind_is_no_u_net(tmp_path):
  workdirs.claim_workdir(tmp_path / "w", config("digits"))
  with pytest.raises(UserError, match=r"has a DiT; expected a UNet with --kind unet"):
    from jldm.cli.pipelines import export_unet

    export_unet(tmp_path / "w", tmp_path / "unet")
