"""What both stages of a run know, and the devices of each."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jldm.config.experiment import Experiment, Stage
from jldm.distributed import sharding
from jldm.inference.load import Model
from jldm.train.goodput import Goodput
from jldm.train.preemption import Notice


@dataclasses.dataclass(frozen=True)
class Run:
  """What both stages know."""

  experiment: Experiment
  model: Model
  workdir: Path
  devices: sharding.Devices = None
  extractor: Any = None  # that the denoiser is judged by while it trains
  wandb: Any = None  # a run of Weights & Biases
  notice: Notice = dataclasses.field(default_factory=Notice)
  clock: Goodput = dataclasses.field(default_factory=Goodput)

  @property
  def seed(self) -> int:
    return self.experiment.seed


def mesh_of(stage: Stage, devices: sharding.Devices) -> Mesh:
  """The devices of a stage: as many as the caller asks for, else as the stage does, and at least one of each process."""
  wanted, least = sharding.layout(devices), jax.process_count()
  asked = math.ceil(stage.devices / least) * least
  return sharding.mesh_for(stage.batch_size, wanted._replace(devices=wanted.devices or asked or None))


def layout_of(mesh: Mesh) -> sharding.Layout:
  """What to draw samples on beside a training."""
  return sharding.Layout(mesh.size, mesh.shape["fsdp"], mesh.shape["tensor"])
