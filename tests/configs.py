"""Experiments for tests: configs by path, and shrunk to seconds."""

import dataclasses
from pathlib import Path

from jldm.cli.train import load_config
from jldm.config.experiment import Experiment, Sampling, Stage
from jldm.data.synthetic import Synthetic
from jldm.inference.load import Model, codec_of
from jldm.models.denoisers.dit import DiT
from jldm.models.denoisers.unet import UNet
from jldm.objectives.autoencoder import Reconstruction

ROOT = Path(__file__).resolve().parents[1]


def config(name: str) -> Experiment:
  return load_config(str(ROOT / "configs" / f"{name}.py"))


def shrunk(experiment: Experiment, steps: int = 2) -> Experiment:
  """The same kinds of networks and objectives at the smallest widths, on synthetic data of the same kind, 8x8 latents at most."""
  replace = dataclasses.replace
  data, codec, denoiser = experiment.data, experiment.autoencoder, experiment.denoiser
  most = 8 * codec_of(experiment).factor  # latents of 8x8
  small = dict(batch_size=8, steps=steps, log_every_steps=1, save_every_steps=2, picture_every_steps=1000, snapshot_every_steps=1)
  return replace(
    experiment,
    sampling=replace(experiment.sampling, steps=min(experiment.sampling.steps, 4)),
    data=Synthetic(
      height=min(data.height, most), width=min(data.width, most), channels=data.channels, classes=data.classes,
      count=20, mirror=data.mirror,
    ),
    autoencoder=replace(codec, **small, objective=small_autoencoder(codec.objective)) if isinstance(codec, Stage) else codec,
    denoiser=replace(denoiser, **small, objective=replace(
      denoiser.objective, network=small_denoiser(denoiser.objective.network))),
  )


def small_autoencoder(objective: Reconstruction) -> Reconstruction:
  """The same kind of network."""
  network = objective.network
  return dataclasses.replace(objective, network=network.clone(widths=tuple(4 for _ in network.widths), groups=2, resnets=0))


def small_denoiser(network: DiT | UNet) -> DiT | UNet:
  """The same kind of network with the same options."""
  if isinstance(network, DiT):
    block = network.block.clone(heads=2)
    return network.clone(block=block, width=8, depth=2, unroll=1)
  widths = tuple(4 for _ in network.widths)
  return network.clone(widths=widths, resnets=1, heads=2, head_width=0, groups=2, token_width=min(network.token_width, 4))


def steps_of(model: Model, steps: int) -> Sampling:
  """The model's own sampling in another number of steps."""
  return dataclasses.replace(model.sampling, steps=steps)
