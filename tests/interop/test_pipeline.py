"""Pipelines draw the pictures that diffusers draws: tests/parity/pipeline.py made pipeline.npz."""

import fnmatch
import functools
import glob
import json
from pathlib import Path
import shutil

import jax
import numpy as np
from PIL import Image
import pytest

from jldm.cli import main
from jldm.cli.pipelines import joined_tower, pipeline_experiment
from jldm.config.presets import make_guidance, make_sampler, override_sampling
from jldm.diffusion.process import Discrete, LinearBetas
from jldm.diffusion.target import Predict
from jldm.inference.generate import Request, set_up
from jldm.inference.load import load, text_conditioner
from jldm.inference.model import build_model, resize_model
from jldm.interop import safetensors, scheduler
from jldm.interop.pipeline import read_pipeline, save_pipeline
from jldm.samplers.ddim import DDIM
from jldm.samplers.sample import scan_steps
from jldm.samplers.timesteps import Timesteps
from tests.networks import quick
from tests.pipelines import (
  KEPT,
  NEGATIVE,
  PROMPT,
  SCALE,
  STEPS,
  STORED,
  change_json,
  change_scheduler,
  write_pipeline,
)
from tests.towers import write_tokenizer

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


def draw(model, params, **given) -> np.ndarray:
  """The picture [1, H, W, 3] in [0, 1] that tests/parity/pipeline.py asks for, from the same latents."""
  model = resize_model(model, tuple(2 * side for side in KEPT["latents"].shape[1:3]))
  request = Request(given={"text": PROMPT} | given, against=({"text": NEGATIVE},))
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
def test_the_inpainting_network_is_given_the_mask_and_what_is_known(folders):
  """Its picture is that of diffusers; without a picture all of it is painted."""
  model, params = in_memory(folders("inpaint"))
  drawn = draw(model, params, masked=(KEPT["image"], KEPT["known"]))
  assert np.abs(drawn - KEPT["inpaint/ddim"]).max() <= TOLERANCE
  nothing = np.zeros_like(KEPT["image"]), np.zeros_like(KEPT["known"])
  np.testing.assert_array_equal(draw(model, params), draw(model, params, masked=nothing))


@pytest.mark.parametrize("family", ["sd1", "xl", "inpaint"])
def test_it_writes_the_pipeline_that_it_read(family, folders, tmp_path):
  """The same networks and tensors, bit for bit, and the same sampler on the same timesteps."""
  before = read_pipeline(folders(family))
  save_pipeline(tmp_path / "f", before)
  after, index = read_pipeline(tmp_path / "f"), json.loads((tmp_path / "f" / "model_index.json").read_text())
  stored = json.loads(STORED[family]["texts"]["model_index.json"])
  assert {
    name: value for name, value in stored.items() if not name.startswith("_diff")
  }.items() <= index.items()
  assert [tower.network for tower in after.towers] == [tower.network for tower in before.towers]
  for field in ("kind", "autoencoder", "sampler", "grid", "size_features", "zero_null", "masked"):
    assert getattr(after, field) == getattr(before, field), field
  assert after.denoiser._replace(params={}) == before.denoiser._replace(params={})
  trees = ((each.denoiser.params, each.codec, each.tower_params) for each in (after, before))
  jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde", "pndm", "unipc", "ddim", "rk4"])
def test_a_scheduler_is_written_as_it_is_read(name, tmp_path):
  """What no scheduler has becomes DDIM."""
  process, predicted = Discrete(LinearBetas(0.001, 0.02, 100), True), Predict("v")
  dropped = name in ("dpmpp_2m", "dpmpp_2m_sde", "unipc")
  grid = Timesteps("linspace", dropped=1) if dropped else Timesteps(strided=True)
  made = scheduler.scheduler_config(process, predicted, make_sampler(name), grid)
  (tmp_path / scheduler.FILE).write_text(json.dumps(made))
  assert scheduler.read_scheduler(tmp_path / scheduler.FILE) == (process, predicted)
  expected = make_sampler(name), grid
  if name == "rk4":
    expected = DDIM(), Timesteps("leading", 1, strided=True, set_alpha_to_one=False)
  assert scheduler.read_sampling(tmp_path / scheduler.FILE) == expected


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
  assert main(["convert", str(moved), str(tmp_path / "back"), "--to", "diffusers"]) == 0
  for name in STORED["sd1"]["shapes"]:
    ours, theirs = (safetensors.read(each / name) for each in (tmp_path / "back", folders("sd1")))
    assert {key.removeprefix("text_model.") for key in ours} == set(theirs)
    for key, value in ours.items():
      np.testing.assert_array_equal(value, theirs[key.removeprefix("text_model.")])


def config_of(part, **fields):
  return lambda folder: change_json(folder / part / "config.json", **fields)


def without(name):
  return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def scheduler_with(**fields):
  return lambda folder: change_json(folder / "scheduler" / "scheduler_config.json", **fields)


def index_with(**fields):
  return lambda folder: change_json(folder / "model_index.json", **fields)


def of_dtype(file, dtype):
  def change(folder):
    arrays = safetensors.read(folder / file)
    safetensors.write(folder / file, {name: value.astype(dtype) for name, value in arrays.items()})

  return change


WEIGHTS = "diffusion_pytorch_model.safetensors"
BAD = [  # what is done to a folder, and what the one line says
  (
    index_with(_class_name="FluxPipeline"),
    "model_index.json: _class_name=FluxPipeline; expected one of Stable*; of others give --kind autoencoder",
  ),
  (
    index_with(_class_name=...),
    "model_index.json: _class_name=None; expected one of StableDiffusionPipeline",
  ),
  (
    lambda folder: (folder / "model_index.json").write_text("[]"),
    "model_index.json: _class_name=None; expected",
  ),
  (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json' is no JSON"),
  (without("unet"), "unet: "),
  (without("tokenizer"), "tokenizer: "),
  (without(f"unet/{WEIGHTS}"), f"unet: * has none of {WEIGHTS}"),
  (without("vae/config.json"), "vae: "),
  (without("scheduler/scheduler_config.json"), "scheduler_config.json; put it there"),
  (without("text_encoder/model.safetensors"), "text_encoder: * has no model.safetensors"),
  (without("tokenizer/tokenizer.json"), "tokenizer: there are no files of tokenizer.json, vocab.json"),
  (
    lambda folder: write_tokenizer(folder / "tokenizer"),
    "* has 10 ids, and vocab_size of the text encoder is 523",
  ),
  (
    config_of("unet", cross_attention_dim=32),
    "unet: cross_attention_dim=32; expected 24, hidden_size of the text",
  ),
  (config_of("unet", act_fn="gelu"), "unet: config.json has act_fn=gelu; expected 'silu'"),
  (
    config_of("unet", down_block_types=["A", "B"]),
    "unet: config.json has down_block_types=['A', 'B']; expected 2 of",
  ),
  (config_of("unet", in_channels=5), "unet: in_channels=5; expected 4, or 9 for inpainting"),
  (
    config_of("unet", _class_name="UNet3DConditionModel"),
    "unet: * is of 'UNet3DConditionModel'; expected UNet2D",
  ),
  (
    config_of("unet", addition_embed_type="text_time", projection_class_embeddings_input_dim=64),
    "unet: addition_embed_type=text_time; expected null",
  ),
  (of_dtype(f"unet/{WEIGHTS}", np.int32), "unet: *is int32; expected float32, float16 or bfloat16"),
  (
    of_dtype("text_encoder/model.safetensors", np.uint8),
    "text_encoder: *is uint8; expected float32, float16 or bfloat16",
  ),
  (config_of("vae", _class_name="AutoencoderOobleck"), "vae: *AutoencoderOobleck"),
  (config_of("vae", latent_channels=8), "vae: "),
  (
    config_of("text_encoder", hidden_act="relu"),
    "text_encoder: config.json has hidden_act=relu; expected one of",
  ),
  (
    config_of("text_encoder", model_type="bert"),
    "text_encoder: *model_type='bert'; expected one of clip_text_model",
  ),
  (
    scheduler_with(_class_name="EDMEulerScheduler"),
    "scheduler: config.json has _class_name=EDMEulerScheduler; expected",
  ),
  (
    scheduler_with(prediction_type="rain"),
    "scheduler: config.json has prediction_type=rain; expected one of epsilon",
  ),
  (
    scheduler_with(timestep_spacing="odd"),
    "scheduler: config.json has timestep_spacing=odd; expected one of leading",
  ),
]
BAD_XL = [
  (without("tokenizer_2"), "tokenizer_2: "),
  (
    config_of("unet", addition_embed_type=...),
    "unet: addition_embed_type=None; expected text_time of a pipeline with 2",
  ),
  (
    config_of("unet", projection_class_embeddings_input_dim=60),
    "unet: projection_class_embeddings_input_dim=60; expected 64: 16 of the text and 48 of sizes",
  ),
  (
    config_of("unet", cross_attention_dim=16),
    "unet: cross_attention_dim=16; expected 24, hidden_size of the text encoders",
  ),
  (config_of("text_encoder_2", num_attention_heads=3), "text_encoder_2: "),
]


@pytest.mark.parametrize(
  ("family", "change", "said"), [("sd1", *row) for row in BAD] + [("xl", *row) for row in BAD_XL]
)
def test_a_bad_folder_is_one_line_that_names_the_part_and_nothing_is_written(
  family, change, said, folders, tmp_path, capsys
):
  shutil.copytree(folders(family), tmp_path / "f")
  change(tmp_path / "f")
  assert main(["convert", str(tmp_path / "f"), str(tmp_path / "w"), "--to", "jldm"]) == 2
  line = capsys.readouterr().err
  assert line.startswith("error: ") and line.count("\n") == 1
  assert fnmatch.fnmatchcase(line, f"*{glob.escape(said).replace('[*]', '*')}*"), line
  assert not (tmp_path / "w").exists()
