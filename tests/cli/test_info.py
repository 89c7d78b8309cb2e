"""`jldm info`: files, folders and workdirs."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jldm.cli import main
from jldm.interop import locate, safetensors
from tests.configs import ROOT
from tests.parity.drawn import SD


def printed(capsys, *argv) -> str:
  assert main(["info", *map(str, argv)]) == 0
  return capsys.readouterr().out


def test_a_file(tmp_path, capsys):
  path = tmp_path / "x.safetensors"
  safetensors.write(
    path, {"a": np.float32([1, 3, np.nan]), "b": np.zeros((2, 0), np.int32)}, {"kind": "test"}
  )
  brief, long = printed(capsys, path), printed(capsys, path, "--statistics")
  assert "kind: test" in brief and "a  float32  [3]" in brief and "b  int32    [2, 0]" in brief
  assert "2 arrays (1 float32, 1 int32), 0.000 M values, 0.0 MB" in brief and "not finite" not in brief
  assert (
    "1 to          3, mean          2, std          1, 1 not finite" in long and "1 values not finite" in long
  )


def test_what_is_not_read_is_named_and_nothing_reaches_the_terminal_raw(tmp_path, capsys):
  header = {
    "__metadata__": {"kind": "a\x1b[31m"},
    "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
    "b": {"dtype": "F4", "shape": [2, 4], "data_offsets": [2, 6]},
  }
  text = json.dumps(header).encode()
  path = tmp_path / "x.safetensors"
  path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(6))
  out = printed(capsys, path, "--statistics")
  assert "b  F4 [2, 4], a dtype that is not read here" in out and "1 arrays (1 uint8)" in out
  assert r"kind: a\x1b[31m" in out and "\x1b" not in out


def test_a_folder_of_diffusers_and_a_workdir(tmp_path, capsys):
  folder = printed(capsys, SD)
  assert "AutoencoderKL of diffusers" in folder and "KLAutoencoder(channels=3, latent_channels=4" in folder
  assert "std of latents: 5.48998" in folder  # 1 / 0.18215
  assert "decoder.conv_in.bias " in folder and "248 arrays" not in folder and "0.067 M values" in folder
  assert main(["convert", str(SD), str(tmp_path / "w"), "--to", "jldm"]) == 0
  workdir = printed(capsys, tmp_path / "w", "--statistics")
  assert "autoencoder: Reconstruction, at step 0 of 0" in workdir and "denoiser" not in workdir
  assert "params/decoder/in/bias " in workdir and "0 values not finite" in workdir


@pytest.mark.parametrize(("name", "kept"), [("sd2", "unet"), ("diffusers", "dit")])
def test_a_denoiser_of_diffusers_says_what_it_predicts(name, kept, tmp_path, capsys):
  saved = json.loads(str(np.load(SD.parent / f"{kept}.npz")["told"]))[name]
  folder, scheduler = tmp_path / "unet", tmp_path / "scheduler"
  folder.mkdir()
  safetensors.write(folder / locate.WEIGHTS, {"x": np.zeros(3, np.float32)})
  (folder / locate.CONFIG).write_text(json.dumps(saved["config"]))
  assert "no scheduler is beside it" in printed(capsys, folder)
  scheduler.mkdir()
  (scheduler / "scheduler_config.json").write_text(json.dumps({"prediction_type": "v_prediction"}))
  lines = printed(capsys, folder)
  assert f"{saved['config']['_class_name']} of diffusers" in lines and "prediction_type='v'" in lines
  assert {"unet": "UNet(widths=(16, 32)", "dit": "classes=10"}[kept] in lines and "LinearBetas" in lines


def test_a_file_of_diffusers_beside_its_config(tmp_path, capsys):
  """As its folder; with the config of a class that is not read here, as a file."""
  shutil.copytree(SD, tmp_path / "vae")
  file, config = tmp_path / "vae" / locate.WEIGHTS, tmp_path / "vae" / "config.json"
  assert printed(capsys, file).splitlines()[1:] == printed(capsys, SD).splitlines()[1:]
  file = file.rename(tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors")
  assert printed(capsys, tmp_path / "vae").splitlines()[1:] == printed(capsys, SD).splitlines()[1:]
  config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": None}))
  assert "std of latents: 5.48998" in printed(capsys, file)  # 1 / 0.18215, the default
  safetensors.write(
    tmp_path / "vae" / "x.safetensors", {"a": np.zeros(3)}, {"format": "jldm", "kind": "lpips"}
  )
  assert "AutoencoderKL" not in printed(capsys, tmp_path / "vae" / "x.safetensors")  # it describes itself
  config.write_text('{"_class_name": "UNetMotionModel"}')
  assert "a file of arrays" in (listed := printed(capsys, file)) and "decoder.conv_in.bias " in listed


@pytest.mark.parametrize(("source", "message"), [("no", "does not exist"), (".", "has no config.json")])
def test_mistakes(source, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert main(["info", source]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_mistake(tmp_path):
  safetensors.write(tmp_path / "x.safetensors", {f"array{n}": np.zeros(3, np.float32) for n in range(1000)})
  reads, writes = os.pipe()
  os.close(reads)
  call = "import sys; from jldm.cli import main; sys.exit(main(sys.argv[1:]))"
  done = subprocess.run(
    [sys.executable, "-c", call, "info", str(tmp_path / "x.safetensors")],
    cwd=ROOT,
    stdout=writes,
    stderr=subprocess.PIPE,
    text=True,
    timeout=120,
  )
  os.close(writes)
  assert (done.returncode, done.stderr) == (0, "")
