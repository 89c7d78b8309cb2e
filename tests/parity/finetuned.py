"""A U-Net that jldm fine-tuned, read by diffusers with the rest of its pipeline: the log is finetuned.txt.

python tests/parity/finetuned.py write FOLDER    where jldm is, with the repository on PYTHONPATH
python tests/parity/finetuned.py check FOLDER    where torch and diffusers are: prints the log
"""

from pathlib import Path
import shutil
import sys

import numpy as np


def write(folder: Path) -> None:
  """The tuned pipeline for diffusers, and what jldm's U-Net makes of random inputs."""
  import jax

  from jldm.cli import main
  from jldm.inference.load import load
  from jldm.runs.train import train
  from tests.finetune import fixture_sized, make_home

  folder.mkdir(parents=True)
  make_home(folder)
  train(fixture_sized(folder), folder / "tuned", devices=1)
  shutil.copytree(folder / "published", folder / "diffusers")
  shutil.rmtree(folder / "diffusers" / "unet")
  words = ["convert", str(folder / "tuned"), str(folder / "diffusers" / "unet")]
  assert main([*words, "--kind", "unet", "--to", "diffusers"]) == 0
  model, params = load(folder / "tuned")
  network = model.objective.network.clone(dtype="float32")
  rng = np.random.default_rng(0)
  given = {
    "z": rng.standard_normal((2, 8, 8, 4), np.float32),
    "level": np.float32([0.1, 0.9]),
    "tokens": rng.standard_normal((2, 5, network.token_width), np.float32),
  }
  with jax.default_matmul_precision("highest"):
    value = jax.jit(network.apply)(
      {"params": params["denoiser"]}, given["z"], given["level"], {"tokens": given["tokens"]}
    ).value
  np.savez(folder / "outputs.npz", value=value, **given)


def check(folder: Path) -> None:
  import diffusers
  import torch

  print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
  path, kept = folder / "diffusers", np.load(folder / "outputs.npz")
  model, told = diffusers.UNet2DConditionModel.from_pretrained(
    path / "unet", output_loading_info=True, low_cpu_mem_usage=False
  )
  given = {key: torch.from_numpy(kept[key]) for key in kept}
  with torch.no_grad():
    value = model(given["z"].permute(0, 3, 1, 2), given["level"] * 1000, given["tokens"]).sample
  far = np.abs(value.permute(0, 2, 3, 1).numpy() - kept["value"]).max() / np.abs(kept["value"]).max()
  print(
    f"unet: {len(model.state_dict())} tensors, {len(told['missing_keys'])} missing, "
    f"{len(told['unexpected_keys'])} unexpected, {len(told['mismatched_keys'])} misshapen; "
    f"max|difference| / max|ours| {far:.1e}"
  )
  whole = diffusers.StableDiffusionPipeline.from_pretrained(path)
  whole.set_progress_bar_config(disable=True)
  images = whole("a red cat", num_inference_steps=4, height=16, width=16, output_type="np").images
  print(f"{type(whole).__name__}: pictures of {images.shape[1:]}, finite {bool(np.isfinite(images).all())}")


if __name__ == "__main__":
  {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
