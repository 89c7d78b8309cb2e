"""Experiments for tests: configs by path, and shrunk to seconds."""

import dataclasses
from pathlib import Path

from jldm.cli.train import load_config
from jldm.data.synthetic import Synthetic
from jldm.experiment import Experiment

ROOT = Path(__file__).resolve().parents[1]


def config(name: str) -> Experiment:
  return load_config(str(ROOT / "configs" / f"{name}.py"))


def shrunk(experiment: Experiment, steps: int = 2) -> Experiment:
  """The same kinds of networks, objectives and sizes of data, at the smallest widths, on synthetic data."""
  replace = dataclasses.replace
  data, codec, denoiser = experiment.data, experiment.autoencoder, experiment.denoiser
  network, dit = codec.objective.network, denoiser.objective.network
  small = dict(batch_size=8, steps=steps, log_every_steps=1, save_every_steps=2, picture_every_steps=1000)
  return replace(
    experiment,
    data=Synthetic(height=data.height, width=data.width, channels=data.channels, classes=data.classes, count=20),
    autoencoder=replace(codec, **small, objective=replace(
      codec.objective, network=replace(network, widths=tuple(4 for _ in network.widths), groups=2, resnets=0))),
    denoiser=replace(denoiser, **small, objective=replace(
      denoiser.objective, network=replace(dit, width=8, depth=2, heads=2, unroll=1))),
  )
