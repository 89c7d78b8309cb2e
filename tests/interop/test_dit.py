"""Diffusion transformers give what their authors' networks give: tests/parity/dit.py made dit.npz."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.trees import count
from jldm.diffusion.process import Discrete, Flow, LinearBetas, ScaledLinearBetas
from jldm.diffusion.target import Predict, denoiser
from jldm.interop import denoisers, dit as published, locate, safetensors, scheduler
from jldm.models.denoisers.dit import dit
from jldm.samplers.ddim import DDIM
from jldm.samplers.sample import sample
from tests.networks import quick
from tests.parity.drawn import parameters, places

KEPT = np.load(Path(__file__).parents[1] / "parity" / "dit.npz")
STORED = json.loads(str(KEPT["told"]))
HEADS, STEPS, CLASSES = 2, 5, 10
Z, LEVEL = KEPT["z"], KEPT["level"]
LABEL = np.where(KEPT["label"] == CLASSES, -1, KEPT["label"])
TOLERANCE = 1e-5


def families(*quick_ones: str):
  """Every family, those of seconds that a quicker test covers too among the slow ones."""
  mark = lambda name: name if name in quick_ones else pytest.param(name, marks=pytest.mark.slow)
  return pytest.mark.parametrize("family", map(mark, published.FAMILIES))


def tensors(family: str) -> dict[str, np.ndarray]:
  arrays = parameters(STORED[family]["shapes"], STORED[family]["seed"])
  if family == "diffusers":
    for name in arrays:
      if ".norm1.emb." in name:
        arrays[name] = arrays[f"transformer_blocks.0.norm1.emb.{name.partition('.emb.')[2]}"]
    return arrays
  return arrays | {"pos_embed": places(4, 32)}


def written(path: Path, family: str, **changes) -> Path:
  """The file of a family, or the folder of diffusers."""
  arrays = tensors(family) | changes
  if family != "diffusers":
    safetensors.write(path / "x.safetensors", arrays)
    return path / "x.safetensors"
  safetensors.write(path / locate.WEIGHTS, arrays)
  (path / locate.CONFIG).write_text(json.dumps(STORED[family]["config"]))
  return path


def close(actual, expected):
  assert np.abs(actual - expected).max() <= TOLERANCE * np.abs(expected).max()


def output(actual: denoisers.Denoiser, noise_level, rows=slice(None)):
  with jax.default_matmul_precision("highest"):
    return quick(actual.network.apply)(
      {"params": actual.params}, Z[rows], noise_level[rows], {"label": LABEL[rows]}
    )


@families("dit", "lightningdit")
def test_a_file_gives_what_its_authors_network_gives(family, tmp_path):
  """At the times of its own convention, and in a batch of one too."""
  actual = denoisers.read_dit(written(tmp_path, family), family, HEADS)
  assert actual.latent == (8, 8, 4) and actual.network.classes == CLASSES
  t = 1 - LEVEL if actual.parametrization.reverse_time else LEVEL
  t = t + 1 / 1000 if family == "dit" else t  # timestep i of a chain is our time (i + 1) / 1000
  noise_level = np.asarray(actual.parametrization.c_noise(actual.process, jnp.asarray(t)))
  for rows in (slice(None), slice(1)):
    made, expected = output(actual, noise_level, rows), KEPT[f"{family}/value"][rows]
    close(made.value, expected[..., :4])
    if family == "dit":
      close(made.variance, expected[..., 4:])
    else:
      assert made.variance is None


@families("sit", "repa")
def test_samples_are_those_of_its_own_convention(family, tmp_path):
  """Euler from 0 to 1, Euler from 1 to 0, and DDIM on a chain of betas, each in the words of its authors."""
  actual = denoisers.read_dit(written(tmp_path, family), family, HEADS)
  apply = lambda z, level, *_: actual.network.apply({"params": actual.params}, z, level, {"label": LABEL})
  denoise = denoiser(actual.process, actual.parametrization, apply)
  times = np.linspace(1, 0, STEPS + 1)
  if family == "dit":
    times = np.append(np.linspace(999, 0, STEPS).round() + 1, 0) / 1000
  pairs, keys = jnp.float32(np.stack([times[:-1], times[1:]], 1)), jax.random.split(jax.random.key(0), 3)
  with jax.default_matmul_precision("highest"):
    made = quick(lambda z: sample(actual.process, denoise, DDIM(), z, pairs, keys))(Z)
  close(made, KEPT[f"{family}/sample"])


def test_a_folder_of_diffusers_gives_what_diffusers_gives_on_request(tmp_path):
  """By default time has the frequencies that the weights were trained with."""
  folder = written(tmp_path, "diffusers")
  theirs = denoisers.read_dit(folder, "dit", as_diffusers=True)
  close(np.concatenate(output(theirs, LEVEL)[::2], -1), KEPT["diffusers/value"])
  original = denoisers.read_dit(folder, "dit")
  assert (original.network.frequency_shift, original.network.block.mlp_epsilon) == (0, 1e-6)
  far = np.abs(output(original, LEVEL).value - KEPT["diffusers/value"][..., :4]).max()
  assert far > 100 * TOLERANCE * np.abs(KEPT["diffusers/value"]).max()
  assert jax.tree.all(jax.tree.map(np.array_equal, original.params, theirs.params))


def test_a_pipelines_folder_has_its_scheduler(tmp_path):
  (tmp_path / "transformer").mkdir()
  (tmp_path / "scheduler").mkdir()
  written(tmp_path / "transformer", "diffusers")
  config = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.001,
    "beta_end": 0.01,
    "prediction_type": "v_prediction",
  }
  (tmp_path / "scheduler" / scheduler.FILE).write_text(json.dumps(config))
  actual = denoisers.read_dit(tmp_path, "dit")
  assert (actual.process, actual.parametrization) == (Discrete(ScaledLinearBetas(0.001, 0.01)), Predict("v"))


def test_the_largest_has_the_published_number_of_parameters():
  """DiT-XL/2 with its variance, 2212.09748, table 4: 675 million, with the fixed table of places."""
  network = dit("XL", classes=1000, out_channels=8)
  actual = denoisers.shapes(network, (32, 32, 4), {"label": jax.ShapeDtypeStruct((1,), jnp.int32)})
  assert count(actual) + 256 * 1152 == 675_129_632


def test_the_conventions():
  assert published.FAMILIES["dit"].process == Discrete(LinearBetas(0.0001, 0.02))
  for family, reverse in (("sit", True), ("lightningdit", True), ("repa", False)):
    rules = published.FAMILIES[family]
    assert rules.process == Flow() and rules.parametrization == Predict("flow", reverse, 0.001)


def test_a_file_of_several_devices_and_half_precision(tmp_path):
  arrays = {f"module.{name}": np.float16(value) for name, value in tensors("sit").items()}
  safetensors.write(tmp_path / "x.safetensors", arrays)
  actual = denoisers.read_dit(tmp_path / "x.safetensors", "sit", HEADS)
  assert actual.params["in"]["kernel"].dtype == jnp.float32


@pytest.mark.parametrize(
  ("family", "changes", "message"),
  [
    ("dit", {"pos_embed": places(4, 32) + 0.1}, "up to 0.1 off the fixed sinusoids; expected those"),
    ("dit", {"pos_embed": places(4, 32)[:, :15]}, "is [1, 15, 32]; expected [1, side * side, 32]"),
    ("dit", {"x_embedder.proj.weight": np.zeros((32, 4))}, "x_embedder.proj.weight of shape [32, 4]; expe"),
    ("repa", {"other": np.zeros(1, np.float32)}, "has 1 tensors beyond the 31 of this network: other"),
    ("sit", {"final_layer.linear.bias": np.zeros(48, np.float32)}, "is [48], expected [16]"),
    (
      "lightningdit",
      {"blocks.1.adaLN_modulation.1.weight": np.zeros((128, 32), np.float32)},
      " is [128, 32], expected [192, 32]",
    ),
  ],
)  # fmt: skip
def test_a_file_that_does_not_fit(family, changes, message, tmp_path):
  with pytest.raises(UserError) as error:
    denoisers.read_dit(written(tmp_path, family, **changes), family, HEADS)
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("heads", "message"),
  [
    (None, "a width of 32 says nothing about heads (published: 6 of width 384, 12 of width 768, "),
    (-2, "--heads -2 does not divide a width of 32; expected a divisor"),
    (3, "--heads 3 does not divide a width of 32; expected a divisor"),
  ],
)
def test_heads(heads, message, tmp_path):
  with pytest.raises(UserError) as error:
    denoisers.read_dit(written(tmp_path, "dit"), "dit", heads)
  assert message in str(error.value)
  assert denoisers.read_dit(written(tmp_path, "lightningdit"), "lightningdit").network.block.heads == HEADS


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (
      {"_class_name": "SD3Transformer2DModel"},
      "is of 'SD3Transformer2DModel'; expected DiTTransformer2DModel",
    ),
    ({"activation_fn": "relu"}, "config.json has activation_fn=relu; expected 'gelu-approximate'"),
    ({"norm_type": "layer_norm"}, "config.json has norm_type=layer_norm; expected 'ada_norm_zero'"),
    ({"out_channels": 5}, "config.json has out_channels=5; expected one of 4, 8"),
    ({"num_layers": "2"}, "config.json has num_layers=2; expected a whole number from 1 to 256"),
    ({"num_layers": 3}, "lacks"),
  ],
)
def test_a_folder_that_does_not_fit(values, message, tmp_path):
  written(tmp_path, "diffusers")
  (tmp_path / locate.CONFIG).write_text(json.dumps(STORED["diffusers"]["config"] | values))
  with pytest.raises(UserError) as error:
    denoisers.read_dit(tmp_path, "dit")
  assert message in str(error.value)


def test_blocks_with_embedders_of_their_own_are_refused(tmp_path):
  name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
  written(tmp_path, "diffusers", **{name: np.zeros(32, np.float32)})
  with pytest.raises(UserError, match="expected one embedder that all blocks share"):
    denoisers.read_dit(tmp_path, "dit")


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"prediction_type": "flow"}, "prediction_type=flow; expected one of epsilon, v_prediction, sample"),
    (
      {"beta_schedule": "sigmoid"},
      "beta_schedule=sigmoid; expected one of linear, scaled_linear, squaredcos",
    ),
    ({"beta_start": "0"}, "beta_start=0; expected a number between 0 and 1"),
    ({"num_train_timesteps": 0}, "num_train_timesteps=0; expected a whole number from 1 to 65536"),
    ([], "is a list; expected a scheduler_config.json of diffusers"),
  ],
)
def test_a_scheduler_that_is_none(config, message, tmp_path):
  (tmp_path / scheduler.FILE).write_text(json.dumps(config))
  with pytest.raises(UserError) as error:
    scheduler.read_scheduler(scheduler.find_scheduler(tmp_path))
  assert message in str(error.value)
