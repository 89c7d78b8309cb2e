"""What the training of a stage knows, and its devices."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jldm.config.experiment import Experiment, Stage
from jldm.distributed import sharding
from jldm.inference.load import Model, StagePlace, stage_model
from jldm.train.goodput import Goodput
from jldm.train.preemption import Notice


@dataclasses.dataclass(frozen=True)
class Run:
  """What the training of a stage knows: the stage `at` a place, and what it shares with the other
  stages of a run.
  """

  at: StagePlace
  devices: sharding.Devices = None
  extractor: Any = None  # that the last stage that draws is judged by while it trains
  wandb: Any = None  # a run of Weights & Biases
  notice: Notice = dataclasses.field(default_factory=Notice)
  clock: Goodput = dataclasses.field(default_factory=Goodput)

  @property
  def experiment(self) -> Experiment:
    return self.at.experiment

  @property
  def stage(self) -> Stage:
    return self.at.stage

  @property
  def workdir(self) -> Path:
    return self.at.workdir

  @property
  def seed(self) -> int:
    return self.experiment.seed

  @functools.cached_property
  def model(self) -> Model:
    """What the stage trains, with the codec that it needs or is."""
    return stage_model(self.at)

  @property
  def encoding_batch_size(self) -> int:
    """How many examples are encoded at once: as many as the codec was trained on, where its stage is
    of this experiment.
    """
    codec = self.at.needed().get("codec", self.at)
    return (codec if codec.workdir == self.workdir else self.at).stage.batch_size


def mesh_for_stage(stage: Stage, devices: sharding.Devices) -> Mesh:
  """The devices of a stage: as many as the caller asks for, else as the stage does, and at least one
  of each process.
  """
  wanted, least = sharding.as_layout(devices), jax.process_count()
  asked = math.ceil(stage.devices / least) * least
  return sharding.mesh_for(stage.batch_size, wanted._replace(devices=wanted.devices or asked or None))


def layout_of_mesh(mesh: Mesh) -> sharding.Layout:
  """What to draw samples on beside a training."""
  return sharding.Layout(mesh.size, mesh.shape["fsdp"], mesh.shape["tensor"])
