"""Stable Diffusion's autoencoders give what diffusers gives: tests/parity/vae.py made vae.npz and the
folder vae_sd.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jldm.interop import locate, pretrained, safetensors
from jldm.models.codecs import images as codecs
from tests.compiling import UNOPTIMIZED
from tests.marks import slow_after
from tests.parity.drawn import inputs, parameters

PARITY = Path(__file__).parents[1] / "parity"
KEPT = np.load(PARITY / "vae.npz")
STORED = json.loads(str(KEPT["told"]))
FOLDERS = ("sd", "sdxl", "sd3", "vq", "large_mean")
FILES = ("kl_f4", "kl_f8", "kl_f16", "kl_f32", "vq_f4", "vq_f8", "vq_f16")
QUICK = ("kl_f4", "vq_f8")


def folder(name: str, path: Path) -> Path:
  """What diffusers saved, written anew."""
  if name == "sd":
    return PARITY / "vae_sd"
  path.mkdir(exist_ok=True)
  arrays = parameters(STORED[name]["shapes"], STORED[name]["seed"])
  if name == "large_mean":
    for side in ("encoder", "decoder"):
      arrays[f"{side}.conv_in.bias"] += 100
  safetensors.write(path / locate.WEIGHTS, arrays)
  (path / locate.CONFIG).write_text(json.dumps(STORED[name]["config"]))
  return path


def check_outputs(name: str, network, codec: dict, tolerance: float) -> None:
  variables = codecs.variables(codec)
  method = lambda method: jax.jit(
    lambda variables, x: network.apply(variables, x, method=method), compiler_options=UNOPTIMIZED
  )
  encode, decode, quantize = method("encode"), method("decode"), method("quantize")
  with jax.default_matmul_precision("highest"):
    for size, (images, latents) in inputs(network.factor, network.latent_channels).items():
      actual = dict(encode(variables, images)._asdict(), decoded=decode(variables, latents))
      for what in actual.keys() - ({"log_variance"} if f"{name}/{size}/codes" in KEPT else set()):
        wanted = KEPT[f"{name}/{size}/{what}"]
        assert np.abs(actual[what] - wanted).max() <= tolerance * np.abs(wanted).max(), (size, what)
      if f"{name}/{size}/codes" in KEPT:
        assert np.array_equal(quantize(variables, latents)[1], KEPT[f"{name}/{size}/codes"])


@pytest.mark.parametrize("name", slow_after(1, FOLDERS))
def test_a_folder_of_diffusers_gives_the_same(name, tmp_path):
  network, codec = pretrained.read_pretrained(folder(name, tmp_path))
  check_outputs(name, network, codec, 2e-4 if name == "large_mean" else 2e-5)


@pytest.mark.parametrize(
  "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_file_of_compvis_gives_the_same(name, prefix, tmp_path):
  arrays = parameters(STORED[name]["shapes"], STORED[name]["seed"])
  other = {"loss.logvar": np.zeros(()), "model.diffusion_model.out.0.weight": np.zeros(3)}
  safetensors.write(
    tmp_path / "x.safetensors", {prefix + name: value for name, value in arrays.items()} | other
  )
  network, codec = pretrained.read_pretrained(tmp_path / "x.safetensors", scaling_factor=0.5)
  assert np.array_equal(codec["std"], np.full(network.latent_channels, 2))
  if not prefix:
    check_outputs(name, network, codec, 2e-5)
