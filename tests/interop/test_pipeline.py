"""Pipelines draw the pictures that diffusers draws: tests/parity/pipeline.py made pipeline.npz."""

import functools
from pathlib import Path
import shutil

import jax
import numpy as np
from PIL import Image
import pytest

from jldm.cli import main
from jldm.cli.pipelines import joined_tower, pipeline_experiment
from jldm.config.presets import make_guidance, override_sampling
from jldm.inference.generate import Request, set_up
from jldm.inference.load import load, text_conditioner
from jldm.inference.model import build_model, resize_model
from jldm.interop.pipeline import read_pipeline
from jldm.samplers.sample import scan_steps
from tests.networks import quick
from tests.pipelines import KEPT, NEGATIVE, PROMPT, SCALE, STEPS, change_scheduler, write_pipeline

TOLERANCE = 1e-5  # of the grey range
CASES = [("sd1", "ddim"), ("sd1", "dpm"), ("sd1", "pndm"), ("sd2", "ddim"), ("xl", "dpm")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """By family: the folder that diffusers saved, read only."""
  made = tmp_path_factory.mktemp("pipelines")
  return functools.cache(lambda family: write_pipeline(made / family, family))


def in_memory(folder: Path):
  """The model and the parameters of a folder, no workdir written; its tokenizers are those of the folder."""
  pipeline = read_pipeline(folder)
  params = {"denoiser": pipeline.denoiser.params, "codec": pipeline.codec, "text": joined_tower(pipeline)[1]}
  return build_model(pipeline_experiment(pipeline, str(folder))), params


@functools.partial(quick, static_argnums=0)
def run(model, setup, z):
  state, _ = scan_steps(model.process, setup.denoise(model), setup.sampler, z, setup.pairs, setup.keys)
  return setup.decode(model, state.z)


def draw(model, params) -> np.ndarray:
  """The picture [1, H, W, 3] in [0, 1] that tests/parity/pipeline.py asks for, from the same latents."""
  model = resize_model(model, tuple(2 * side for side in KEPT["latents"].shape[1:3]))
  request = Request(given={"text": PROMPT}, against=({"text": NEGATIVE},))
  sampling = override_sampling(model.sampling, steps=STEPS, guidance=make_guidance(scale=SCALE))
  with jax.default_matmul_precision("highest"):
    decoded = run(model, set_up(model, params, request, sampling, 1), KEPT["latents"])
  return np.clip(np.asarray(decoded) / 2 + 0.5, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "scheduler"), CASES)
def test_the_picture_is_that_of_diffusers(family, scheduler, folders, tmp_path):
  folder = tmp_path / "f"
  shutil.copytree(folders(family), folder)
  change_scheduler(folder, family, scheduler)
  expected = KEPT[f"{family}/{scheduler}"]
  assert expected.std() > 0.1 and np.mean((expected <= 0) | (expected >= 1)) < 0.2, "it shows something"
  assert np.abs(draw(*in_memory(folder)) - expected).max() <= TOLERANCE


@pytest.mark.slow
def test_a_workdir_draws_what_its_prompt_says_and_may_be_moved(folders, tmp_path, capsys):
  folder = tmp_path / "f"
  shutil.copytree(folders("sd1"), folder)
  assert main(["convert", str(folder), str(tmp_path / "w"), "--to", "jldm"]) == 0
  shutil.rmtree(folder)
  moved = (tmp_path / "w").rename(tmp_path / "moved")
  options = ["--prompt", PROMPT, "--negative", NEGATIVE, "--size", "16x24", "--steps", "2", "--n", "1"]
  assert main(["sample", "--workdir", str(moved), *options, "--out", str(tmp_path / "o")]) == 0
  assert np.asarray(Image.open(tmp_path / "o" / "00000.png")).shape == (16, 24, 3)
  model, _ = load(moved)
  assert text_conditioner(moved) == model.conditioners["text"]
