"""Autoencoders that jldm trained or imported, read by diffusers: the log is round_trip.txt.

python tests/parity/round_trip.py write FOLDER    where jldm is: folders that `jldm convert --to diffusers` made
python tests/parity/round_trip.py check FOLDER    where torch and diffusers are: prints the log
"""

import json
from pathlib import Path
import sys

import numpy as np

HERE = Path(__file__).parent


def trained(folder: Path) -> dict[str, Path]:
  """Workdirs by name: those of stage 1, trained for some steps, and what was imported."""
  from jldm.cli import main
  from jldm.config.experiment import Experiment, Need, Stage
  from jldm.data.synthetic import Synthetic
  from jldm.diffusion.process import Cosine
  from jldm.models.autoencoders.dc import DCAutoencoder, Level, LinearAttention
  from jldm.models.autoencoders.kl import KLAutoencoder
  from jldm.models.autoencoders.quantize import Codebook
  from jldm.models.autoencoders.tiny import TinyAutoencoder
  from jldm.models.autoencoders.vq import VQAutoencoder
  from jldm.models.denoisers.dit import DiT
  from jldm.objectives.autoencoder import Reconstruction
  from jldm.objectives.diffusion import Diffusion
  from jldm.runs.train import train

  small = dict(widths=(8, 12), resnets=1, groups=4)
  levels = (Level(8, 1), Level(16, 1, LinearAttention(4, scales=(5,))))
  networks = {
    "trained_kl": KLAutoencoder(**small, attention=(1,)),
    "trained_vq": VQAutoencoder(Codebook(32), **small, latent_channels=3),
    "trained_tiny": TinyAutoencoder(width=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1)),
    "trained_dc": DCAutoencoder(latent_channels=4, encoder_levels=levels, decoder_levels=levels),
  }
  for name, network in networks.items():
    stage = Stage(name="autoencoder", objective=Reconstruction(network=network), steps=20, batch_size=8)
    denoiser = Stage(
      name="denoiser",
      needs=(Need("codec", "autoencoder"),),
      objective=Diffusion(network=DiT(), process=Cosine()),
    )
    experiment = Experiment(
      data=Synthetic(height=16, width=16, channels=3, count=32), stages=(stage, denoiser)
    )
    train(experiment, folder / name, ("autoencoder",), devices=1)
  imported = {"imported_sd": "vae_sd", "imported_tiny": "tiny_flux", "imported_dc": "dc_in"}
  for name, source in imported.items():
    if main(["convert", str(HERE / source), str(folder / name), "--to", "jldm"]):
      raise SystemExit(f"the folder {source} could not be imported")
  return {name: folder / name for name in (*networks, *imported)}


def write(folder: Path) -> None:
  """Beside each folder for diffusers, what jldm's network makes of pictures and latents."""
  import jax

  from jldm.cli import main
  from jldm.inference.load import load_codec
  from jldm.models.codecs import images as codecs

  for name, workdir in trained(folder).items():
    out = folder / f"{name}_diffusers"
    if main(["convert", str(workdir), str(out), "--to", "diffusers"]):
      raise SystemExit(f"{workdir} could not be converted")
    network, codec = load_codec(workdir)
    rng = np.random.RandomState(0)
    images = rng.uniform(-1, 1, (2, 2 * network.factor, 3 * network.factor, 3)).astype(np.float32)
    latents = rng.standard_normal((2, 2, 3, network.latent_channels)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
      variables = codecs.variables(codec)
      mean = network.apply(variables, images, method="encode").mean
      decoded = network.apply(variables, latents, method="decode")
    np.savez(folder / f"{name}.npz", images=images, latents=latents, mean=mean, decoded=decoded)


def check(folder: Path) -> None:
  import diffusers
  import torch

  print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
  for path in sorted(folder.glob("*_diffusers")):
    name, kept = (
      path.name.removesuffix("_diffusers"),
      np.load(folder / f"{path.name.removesuffix('_diffusers')}.npz"),
    )
    kind = getattr(diffusers, json.loads((path / "config.json").read_text())["_class_name"])
    model, told = kind.from_pretrained(path, output_loading_info=True, low_cpu_mem_usage=False)
    first = lambda value: torch.from_numpy(value).permute(0, 3, 1, 2)
    last = lambda value: value.permute(0, 2, 3, 1).numpy()
    with torch.no_grad():
      encoded = model.encode(first(kept["images"]))
      found = {
        "mean": last(encoded.latent_dist.mean if kind is diffusers.AutoencoderKL else encoded[0]),
        "decoded": last(model.decode(first(kept["latents"])).sample),
      }
    far = {what: np.abs(value - kept[what]).max() / np.abs(kept[what]).max() for what, value in found.items()}
    print(
      f"{name}: {kind.__name__}, {len(told['missing_keys'])} missing, {len(told['unexpected_keys'])} "
      f"unexpected, "
      f"{len(told['mismatched_keys'])} misshapen; max|difference| / max|ours|: "
      + ", ".join(f"{what} {value:.1e}" for what, value in far.items())
    )
    print(
      f"  scaling_factor {model.config.scaling_factor}, latents_mean {model.config.get('latents_mean')}, "
      f"latents_std {model.config.get('latents_std')}"
    )


if __name__ == "__main__":
  {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
