"""Checks a run before anything is written: numbers, shapes, and one loss of each stage, traced as shapes."""

import dataclasses
from typing import Any, NamedTuple

import jax

from jldm.config.experiment import Experiment, Stage
from jldm.core.errors import UserError
from jldm.distributed import memory, sharding
from jldm.inference.generate import sampling_pairs
from jldm.inference.load import check_finished
from jldm.inference.model import (
  Model,
  StagePlace,
  build_model,
  denoiser_shapes,
  denoising_batch_shapes,
  frozen_codec,
  result_shapes,
  sampling_stage,
  stage_example,
  stage_model,
  trained_shapes,
)
from jldm.models.conditioners.conditioner import tower_params
from jldm.models.conditioners.label import ClassLabel
from jldm.models.denoisers.contract import check_network
from jldm.models.denoisers.dit import DiT
from jldm.models.denoisers.unet import UNet
from jldm.objectives.objective import check_objective
from jldm.runs import selection
from jldm.runs.frozen import frozen_with_weights
from jldm.runs.held_out import is_measured
from jldm.runs.run import mesh_for_stage
from jldm.runs.start import check_start, check_started_shapes
from jldm.train.state import TrainState, init_state


def validate_run(places: list[StagePlace], devices: sharding.Devices) -> Any:
  """Checks the stages of an experiment that are to be trained.

  Returns the extractor for evaluations while training, or None.

  Raises:
    UserError: anything that does not fit; a stage that is needed but neither finished nor trained before.
  """
  experiment = places[0].experiment
  for at in places:
    check_towers(at)
    check_stage(at.stage, devices)
    check_patience(at)
    check_needs_finished(at, places)
    check_start(at)
  for stage in experiment.stages:
    check_data(stage_model(StagePlace(experiment, stage, places[0].workdir)), experiment.data)
  drawn = [stage for stage in experiment.stages if stage.makes == "denoiser"]
  models = [check_model(experiment, stage.name) for stage in drawn]
  for at in places:
    if traced := trace_one_loss(at):
      check_fits(at, devices, traced)
  return selection.check_selection(experiment, models[-1]) if models else None


def check_data(model: Model, data: Any) -> None:
  """Raises a UserError if the data do not fit the codec."""
  for one in data.specs:
    model.codec.latent_spec(one)


def check_stage(stage: Stage, devices: sharding.Devices) -> None:
  """Raises a UserError if the numbers of a stage do not fit each other or the devices."""
  name = stage.name
  if stage.steps < 1 and not (stage.start and stage.makes == "codec"):
    raise UserError(f"{name}.steps={stage.steps}; expected at least 1")
  if not hasattr(stage.ema, "update"):
    raise UserError(
      f"{name}.ema={stage.ema!r}; expected an average such as Decay(0.999) or Power((0.05, 0.1))"
    )
  if stage.remeasure and not (stage.start and stage.makes == "codec"):
    raise UserError(
      f"{name}.remeasure=True of a stage that makes a {stage.makes} and starts from "
      f"{stage.start or 'nothing'!r}; expected an autoencoder that starts from a trained one"
    )
  if stage.keep_every_steps % stage.save_every_steps:
    raise UserError(
      f"{name}.keep_every_steps={stage.keep_every_steps} is not a multiple of "
      f"{name}.save_every_steps={stage.save_every_steps}; expected 0, or one such as "
      f"{10 * stage.save_every_steps}"
    )
  mesh = mesh_for_stage(stage, devices)
  parts = sharding.batch_shard_count(mesh)
  if stage.batch_size % (stage.accumulate * parts):
    raise UserError(
      f"{name}.batch_size={stage.batch_size} is not divisible by accumulate={stage.accumulate} times "
      f"{parts} devices"
    )


def check_patience(at: StagePlace) -> None:
  """Raises a UserError if a stage ends by a figure that is not measured."""
  stage, experiment = at.stage, at.experiment
  judged = experiment.evaluation.every_steps and stage == sampling_stage(experiment)
  if stage.patience and stage.makes == "denoiser" and not (judged or is_measured(at)):
    raise UserError(
      f"{stage.name}.patience={stage.patience}, and nothing is measured on held-out data: data.train and "
      f"data.held_out are both {experiment.data.train!r}, or the objective has no at_time; set it to 0, or "
      "evaluation.every_steps to more"
    )


def check_needs_finished(at: StagePlace, trained: list[StagePlace]) -> None:
  """Raises a UserError unless the sources of a stage are finished, or trained before it in this run."""
  start = at.started_from()
  for source in [*at.needed().values(), *([start] if start else [])]:
    if source not in trained:
      check_finished(source)


def check_towers(at: StagePlace) -> None:
  """Raises a UserError unless the towers of a stage's conditioners are among its needs, and those that it
  names.
  """
  if at.stage.makes == "tower":
    raise UserError(
      f"{at.stage.name} is a text tower, which is imported and not trained; leave it out of the stages and "
      "name its workdir in needs"
    )
  if at.stage.makes != "denoiser":
    return
  conditioners = at.stage.objective.conditioners
  needed = {role: source for role, source in at.needed().items() if source.stage.makes == "tower"}
  tower_params(conditioners, {role: result_shapes(source) for role, source in needed.items()})
  for each in conditioners:
    if each.tower is not None:
      each.check_tower(needed[each.name].stage.objective.network)


def check_model(experiment: Experiment, name: str) -> Model:
  """The model of a stage that draws samples; its networks are built as shapes, which costs no memory."""
  check_class_counts(stage_model(StagePlace(experiment, experiment.stage(name))), experiment.data, name)
  model = build_model(experiment, name)
  check_shapes(model, experiment.data)
  sampling_pairs(model, model.sampling)  # raises if the model could not be sampled
  return model


def check_shapes(model: Model, data: Any) -> None:
  """Builds the networks as shapes for every size of the data; UserError if one does not fit."""
  try:
    check_denoiser(model)
    for one in data.specs:
      denoiser_shapes(dataclasses.replace(model, data=one))
  except (ValueError, TypeError) as error:
    raise UserError(" ".join(str(error).split())) from error


def check_denoiser(model: Model) -> None:
  """Raises a UserError if the denoiser breaks the contract of networks, or does not fit its inputs."""
  objective, batch = model.objective, denoising_batch_shapes(model)
  key = jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(objective.init_conditioners, key, batch)
  inputs = jax.eval_shape(objective.inputs, params, frozen_codec(model), batch, key)
  check_network(objective.network, model.latents(1), inputs)


def check_class_counts(model: Model, data: Any, name: str) -> None:
  """Raises a UserError unless data, conditioners and network agree on the number of classes."""
  known = {
    f"{name}.classes": each.classes
    for name, each in model.conditioners.items()
    if isinstance(each, ClassLabel)
  }
  if isinstance(model.objective.network, (DiT, UNet)):
    known["network.classes"] = model.objective.network.classes
  if known and set(known.values()) != {data.classes}:
    label = f"(ClassLabel(classes={data.classes}),)" if data.classes else "()"
    listed = ", ".join(f"{name}={count}" for name, count in known.items())
    raise UserError(
      f"data has {data.classes} classes, the {name} {listed}; "
      f"--set {name}.objective.network.classes={data.classes} --set '{name}.objective.conditioners={label}'"
    )


class Traced(NamedTuple):
  """A step of a stage as shapes, and the bytes of the largest operation of its loss."""

  state: TrainState
  batch: dict
  frozen: Any
  largest: int


def check_fits(at: StagePlace, devices: sharding.Devices, traced: Traced) -> None:
  """Raises a UserError if the state of a stage and one step cannot fit into memory, before it is allocated.

  What is counted: parameters, optimizer, averages, gradients, a batch, and the largest operation.
  """
  stage, mesh, there = at.stage, mesh_for_stage(at.stage, devices), memory.available_memory()
  shards, parts = mesh.shape["fsdp"] * mesh.shape["tensor"], sharding.batch_shard_count(mesh)
  kept = (memory.tree_bytes(traced.state) + memory.tree_bytes(traced.state.params)) / shards
  passing = (memory.tree_bytes(traced.batch) + traced.largest / stage.accumulate) / (
    parts * mesh.shape["tensor"]
  )
  copies = len(mesh.local_devices) if there.shared else 1
  name = stage.name
  memory.check_memory(
    f"a step of {name} (parameters, optimizer, averages and gradients {memory.bytes_text(copies * kept)})",
    copies * (kept + passing),
    f"make the network narrower, {name}.batch_size smaller or {name}.accumulate larger, give the network "
    "remat='full', or train on more devices with --fsdp",
    there,
  )


def trace_one_loss(at: StagePlace) -> Traced | None:
  """Traces one loss of a stage as shapes, which raises if anything does not fit together.

  Returns None if the stage has no steps.
  """
  stage, objective = at.stage, check_objective(at.stage.objective, at.stage.name)
  if not stage.steps:
    return None
  objective.check_fields()
  frozen = frozen_with_weights(at)
  batch, key = stage_example(at, frozen, stage.batch_size), jax.random.key(0)
  tx = stage.optimizer.build(stage.steps)
  state = jax.eval_shape(lambda *made: init_state(*made, tx, stage.ema), *trained_shapes(at, frozen))
  check_started_shapes(at, state)
  loss = lambda *arrays: objective.loss(*arrays, key)
  largest = memory.largest_operation(loss, state.params, state.extra, state.ema[0], frozen, batch)
  return Traced(state, batch, frozen, largest)
