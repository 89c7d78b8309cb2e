"""The context of a stage's training, and its devices."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jldm.config.experiment import Experiment, Stage
from jldm.distributed import sharding
from jldm.inference.model import Model, StagePlace, stage_model
from jldm.storage import workdir as workdirs
from jldm.train.goodput import Goodput
from jldm.train.preemption import Notice


@dataclasses.dataclass(frozen=True)
class Run:
  """The context of a stage's training: the stage and its workdir, and what the stages of a run share."""

  at: StagePlace
  devices: sharding.Devices = None
  extractor: Any = None  # computes features for the evaluations while training
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

  @functools.cached_property
  def data_identity(self) -> dict:
    """What the data were when the run began."""
    return workdirs.read_data_identity(self.workdir)

  @property
  def seed(self) -> int:
    return self.experiment.seed

  @functools.cached_property
  def model(self) -> Model:
    """The model that the stage trains, with its codec."""
    return stage_model(self.at)

  @property
  def encoding_batch_size(self) -> int:
    """How many examples are encoded at once: the codec's batch size if this experiment trains it."""
    codec = self.at.needed().get("codec", self.at)
    return (codec if codec.workdir == self.workdir else self.at).stage.batch_size


def mesh_for_stage(stage: Stage, devices: sharding.Devices) -> Mesh:
  """The mesh of a stage: the devices that the caller gives, else those that the stage gives.

  Every process has at least one device.
  """
  requested, least = sharding.as_layout(devices), jax.process_count()
  default = math.ceil(stage.devices / least) * least
  layout = requested._replace(devices=requested.devices or default or None)
  return sharding.mesh_for(stage.batch_size, layout)


def layout_of_mesh(mesh: Mesh) -> sharding.Layout:
  """The layout of a mesh, to draw samples on the devices that a stage trains on."""
  return sharding.Layout(mesh.size, mesh.shape["fsdp"], mesh.shape["tensor"])
