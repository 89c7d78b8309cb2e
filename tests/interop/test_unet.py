"""Stable Diffusion's U-Nets give what diffusers gives: tests/parity/unet.py made unet.npz."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.trees import count
from jldm.diffusion.process import Discrete, ScaledLinearBetas
from jldm.diffusion.target import Predict
from jldm.interop import denoisers, locate, rename, safetensors, scheduler, unet
from jldm.models.conditioners.sizes import Sizes
from jldm.models.denoisers.unet import UNet
from tests.networks import quick
from tests.parity.drawn import parameters

KEPT = np.load(Path(__file__).parents[1] / "parity" / "unet.npz")
STORED = json.loads(str(KEPT["told"]))
FAMILIES, PUBLISHED = ("sd1", "inpaint", "sd2", "xl"), {"sd15": 686, "sd21": 686, "sdxl": 1680}
PARAMETERS = {"sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684}  # as diffusers counts them
TOLERANCE = 2e-5
GROUPS = 8
slow_but = lambda *names: [
  name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
]


def tensors(name: str) -> dict[str, np.ndarray]:
  return parameters(STORED[name]["shapes"], STORED[name]["seed"])


def written(path: Path, name: str, **values) -> Path:
  """The folder that diffusers saved, written anew, with other values in its config."""
  path.mkdir(exist_ok=True)
  safetensors.write(path / locate.WEIGHTS, tensors(name))
  (path / locate.CONFIG).write_text(json.dumps(STORED[name]["config"] | values))
  return path


def single(path: Path, name: str) -> Path:
  """The same as a single file of CompVis, between other parts of a model."""
  theirs = STORED[name]["compvis"]
  arrays = {unet.PREFIX + theirs[key]: value for key, value in tensors(name).items()}
  safetensors.write(path / "x.safetensors", arrays | {"first_stage_model.x": np.zeros(1, np.int64)})
  return path / "x.safetensors"


def check_output(name: str, actual: denoisers.Denoiser, rows: slice) -> None:
  given = {key: KEPT[f"{name}/{key}"][rows] for key in ("z", "level", "tokens", "value")}
  inputs = {"tokens": given["tokens"]}
  if given["z"].shape[-1] > 4:
    inputs["concat"] = given["z"][..., 4:]
  if name == "xl":  # the text first, then sinusoids of each size
    sizes = Sizes(features=8).embed({}, {"sizes": KEPT[f"{name}/sizes"][rows]}, None)["vector"]
    inputs["vector"] = np.concatenate([KEPT[f"{name}/text"][rows], sizes], -1)
  with jax.default_matmul_precision("highest"):
    value = quick(actual.network.apply)(
      {"params": actual.params}, given["z"][..., :4], given["level"], inputs
    ).value
  assert np.abs(value - given["value"]).max() <= TOLERANCE * np.abs(given["value"]).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_folder_gives_what_diffusers_gives(name, tmp_path):
  actual = denoisers.read_unet(written(tmp_path, name), "eps")
  check_output(name, actual, slice(None))


@pytest.mark.parametrize("name", slow_but("sd1"))
def test_a_batch_of_one(name, tmp_path):
  check_output(name, denoisers.read_unet(written(tmp_path, name), "eps"), slice(1, 2))


def narrow(monkeypatch) -> None:
  """Single files have no config: numbers that Stable Diffusion's have in common are those of the fixtures."""
  monkeypatch.setattr(unet, "GROUPS", GROUPS)
  monkeypatch.setattr(unet, "HEADS", 2)
  monkeypatch.setattr(unet, "HEAD_WIDTH", 8)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_single_file_is_the_folder(name, tmp_path, monkeypatch):
  narrow(monkeypatch)
  whole = denoisers.read_unet(single(tmp_path, name), "v" if name == "sd2" else None)
  folder = denoisers.read_unet(written(tmp_path / "f", name), "eps")
  assert whole.network == folder.network
  assert whole.parametrization == Predict("v" if name == "sd2" else "eps")
  assert whole.process == Discrete(ScaledLinearBetas())
  jax.tree.map(np.testing.assert_array_equal, whole.params, folder.params)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_writes_what_it_read(name, tmp_path):
  """The same tensors, bit for bit, and a config of the same network."""
  folder = written(tmp_path / "f", name)
  actual = denoisers.read_unet(folder, "eps")
  denoisers.save_unet(tmp_path / "out", actual.network, actual.params, side=8, size_features=8)
  again, before = (safetensors.read(path / locate.WEIGHTS) for path in (tmp_path / "out", folder))
  assert again.keys() == before.keys()
  for key, value in before.items():
    np.testing.assert_array_equal(again[key], value)
  theirs, ours = STORED[name]["config"], json.loads((tmp_path / "out" / locate.CONFIG).read_text())
  assert unet.network(ours) == unet.network(theirs)
  assert not {key for key in ours if key != "_diffusers_version" and ours[key] != theirs[key]}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_trees_have_the_published_names_and_shapes(name):
  """Nothing is allocated; in a single file too."""
  network, shape = unet.network(STORED[name]["config"])
  like = denoisers.shapes(network, (128, 128, shape.out_channels), denoisers.unet_inputs(network, shape))
  theirs = {key: tuple(value) for key, value in STORED[name]["shapes"].items()}
  assert rename.published_shapes(unet.table(network), like) == theirs
  assert len(theirs) == PUBLISHED[name] and count(like) == PARAMETERS[name]
  names = {STORED[name]["compvis"][key]: value for key, value in theirs.items()}
  assert rename.published_shapes(unet.table(network, "CompVis"), like) == names
  assert unet.compvis_network(names) == (network, shape)


def test_the_published_networks():
  """Heads: a number of them in 1, of a width of 64 in 2 and XL, whatever the field is called."""
  networks = {name: unet.network(STORED[name]["config"])[0] for name in PUBLISHED}
  assert networks["sd15"] == UNet(token_width=768)
  assert networks["sd21"] == UNet(token_width=1024, head_width=64)
  assert networks["sdxl"] == UNet(
    widths=(320, 640, 1280),
    attention=(False, True, True),
    token_width=2048,
    head_width=64,
    transformer_layers=(1, 2, 10),
    vector_layers=2,
  )


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"_class_name": "UNet2DModel"}, "is of 'UNet2DModel'; expected UNet2DConditionModel"),
    ({"act_fn": "gelu"}, "act_fn=gelu; expected 'silu'"),
    ({"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}, "expected 2 of CrossAttnDownBlock2D or Dow"),
    ({"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "expected attention at the scales of down"),
    ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type=UNetMidBlock2D; expected 'UNetM"),
    ({"num_attention_heads": 4}, "num_attention_heads=4; expected null"),
    ({"attention_head_dim": [2, 2, 2]}, "attention_head_dim=[2, 2, 2]; expected 2 values, one a level"),
    ({"attention_head_dim": [2, 8]}, "attention_head_dim=[2, 8]; expected one number, or heads of one width"),
    ({"attention_head_dim": 3}, "attention_head_dim=[3, 3]; expected numbers of heads that divide [16, 32]"),
    ({"cross_attention_dim": [24, 24]}, "cross_attention_dim=[24, 24]; expected a whole number"),
    ({"cross_attention_dim": 32}, r"attn2.to_k.weight of"),
    ({"time_cond_proj_dim": 256}, "time_cond_proj_dim=256; expected null"),
    ({"addition_embed_type": "text"}, "addition_embed_type=text; expected one of text_time, none"),
    ({"layers_per_block": 2}, "lacks 96 of 304 tensors"),
    ({"in_channels": 3}, "in_channels=3; expected a whole number from 4"),
  ],
)  # fmt: skip
def test_a_folder_that_does_not_fit(values, message, tmp_path):
  with pytest.raises(UserError) as error:
    denoisers.read_unet(written(tmp_path, "sd1", **values), "eps")
  assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_part(tmp_path):
  with pytest.raises(
    UserError, match=r"has no config.json; expected a folder of diffusers' UNet2DConditionModel"
  ):
    denoisers.read_unet(tmp_path)


def test_what_is_predicted_stands_beside_the_network(tmp_path):
  """In the scheduler of a pipeline's folder; of a single file of Stable Diffusion 2 it must be given."""
  written(tmp_path / "unet", "sd2")
  with pytest.raises(UserError, match="does not say what it predicts; give prediction_type: 'v' for Stable"):
    denoisers.read_unet(tmp_path)
  (tmp_path / "scheduler").mkdir()
  message = {
    "prediction_type": "v_prediction",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
  }
  (tmp_path / "scheduler" / scheduler.FILE).write_text(json.dumps(message))
  for place in (tmp_path, tmp_path / "unet"):
    actual = denoisers.read_unet(place)
    assert (actual.process, actual.parametrization) == (Discrete(ScaledLinearBetas()), Predict("v"))
  with pytest.raises(UserError, match="prediction_type='eps'; expected 'v', which "):
    denoisers.read_unet(tmp_path, "eps")


def test_a_single_file_that_does_not_fit(tmp_path, monkeypatch):
  narrow(monkeypatch)
  path = single(tmp_path, "sd2")
  with pytest.raises(UserError, match="does not say what it predicts"):
    denoisers.read_unet(path)
  arrays = safetensors.read(path)
  without = {name: value for name, value in arrays.items() if "out.2" not in name}
  safetensors.write(tmp_path / "y.safetensors", without)
  with pytest.raises(UserError, match=r"lacks model\.diffusion_model\.out\.2\.weight, or its axes"):
    denoisers.read_unet(tmp_path / "y.safetensors", "v")
  safetensors.write(tmp_path / "z.safetensors", {"x": np.zeros(1, np.float32)})
  with pytest.raises(UserError, match=r"changes of scale at model\.diffusion_model\.input_blocks \[\]"):
    denoisers.read_unet(tmp_path / "z.safetensors", "v")


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"log_variance": True}, "log_variance=True, which diffusers' UNet2DConditionModel has not"),
    ({"token_width": 0}, "token_width=0, which"),
    ({"resample_conv": False}, "resample_conv=False, which"),
  ],
)
def test_what_diffusers_cannot_be(fields, message):
  with pytest.raises(UserError) as error:
    unet.config(UNet(token_width=768).clone(**fields), unet.Shape(4, 4, 0, 64))
  assert message in str(error.value)
