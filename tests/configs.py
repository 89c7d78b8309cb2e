"""Experiments for tests: configs by path, and shrunk to seconds."""

import dataclasses
from pathlib import Path

from jldm.cli.train import load_config
from jldm.config.experiment import Experiment, Sampling
from jldm.data.synthetic import Synthetic
from jldm.inference.model import Model
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.models.denoisers.dit import DiT
from jldm.models.denoisers.unet import UNet

ROOT = Path(__file__).resolve().parents[1]
OF_PUBLISHED = ("sd15_finetune",)  # configs that start from a pipeline: tests/runs/test_finetune.py
STAGES = ("autoencoder", "denoiser")  # of every config that has an autoencoder


def config(name: str) -> Experiment:
  return load_config(str(ROOT / "configs" / f"{name}.py"))


def shrunk(experiment: Experiment, steps: int = 2) -> Experiment:
  """The same kinds of networks and objectives at the smallest widths, on synthetic data of the same
  kind, 8x8 latents at most.
  """
  replace = dataclasses.replace
  data, codec = experiment.data, experiment.last("codec")
  most = 8 * codec.objective.network.factor if codec else 8  # latents of 8x8
  small = dict(
    batch_size=8,
    steps=steps,
    log_every_steps=1,
    save_every_steps=2,
    picture_every_steps=1000,
    snapshot_every_steps=1,
  )
  return replace(
    experiment,
    sampling=replace(experiment.sampling, steps=min(experiment.sampling.steps, 4)),
    data=Synthetic(
      height=min(data.height, most),
      width=min(data.width, most),
      channels=data.channels,
      classes=data.classes,
      count=20,
      mirror=data.mirror,
      caption=data.caption,
    ),
    stages=tuple(
      replace(
        stage,
        **small,
        objective=replace(stage.objective, network=SMALL[stage.makes](stage.objective.network)),
      )
      for stage in experiment.stages
    ),
  )


def small_autoencoder(network: KLAutoencoder | VQAutoencoder) -> KLAutoencoder | VQAutoencoder:
  """The same kind of network with the same options."""
  return network.clone(widths=tuple(4 for _ in network.widths), groups=2, resnets=0)


def small_denoiser(network: DiT | UNet) -> DiT | UNet:
  """The same kind of network with the same options; a U-Net of two scales."""
  if isinstance(network, DiT):
    block = network.block.clone(heads=2)
    return network.clone(block=block, width=8, depth=2, unroll=1)
  finest, *coarser = network.attention
  attention = (finest, any(coarser))
  return network.clone(
    widths=(4, 4),
    attention=attention,
    resnets=1,
    heads=2,
    head_width=0,
    groups=2,
    token_width=min(network.token_width, 4),
  )


SMALL = {"codec": small_autoencoder, "denoiser": small_denoiser}  # by what a stage makes


def steps_of(model: Model, steps: int) -> Sampling:
  """The model's own sampling in another number of steps."""
  return dataclasses.replace(model.sampling, steps=steps)
