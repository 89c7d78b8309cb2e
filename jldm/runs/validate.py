"""What can be refused is refused before anything is written: numbers, shapes, and one loss of each stage, as shapes."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jldm.config.experiment import Experiment, Stage
from jldm.config.serialize import differences, to_data
from jldm.core.errors import UserError
from jldm.core.specs import batched
from jldm.data.buckets import shapes
from jldm.distributed import sharding
from jldm.inference.load import Model, example, frozen_shapes, load_codec, of_size, resized
from jldm.interop import safetensors
from jldm.metrics import perceptual
from jldm.models.conditioners.label import ClassLabel
from jldm.models.denoisers.contract import check_network
from jldm.models.denoisers.dit import DiT
from jldm.models.denoisers.unet import UNet
from jldm.runs.run import mesh_of
from jldm.train.state import TrainState, init_state


def check_stage(stage: Stage, name: str, devices: sharding.Devices) -> None:
  """Raises a UserError where the numbers of a stage do not fit each other or the devices."""
  if stage.start and name != "autoencoder":
    raise UserError(f"{name}.start={stage.start!r}; an autoencoder alone may start from another workdir")
  counts = ("batch_size", "accumulate", "log_every_steps", "save_every_steps", "picture_every_steps", "snapshot_every_steps")
  for field in counts if stage.start else ("steps", *counts):
    if getattr(stage, field) < 1:
      raise UserError(f"{name}.{field}={getattr(stage, field)}; expected at least 1")
  if not hasattr(stage.ema, "update"):
    raise UserError(f"{name}.ema={stage.ema!r}; expected an average such as Decay(0.999) or Power((0.05, 0.1))")
  mesh = mesh_of(stage, devices)
  parts = sharding.ways(mesh)
  if stage.batch_size % (stage.accumulate * parts):
    raise UserError(
      f"{name}.batch_size={stage.batch_size} is not divisible by accumulate={stage.accumulate} times {parts} devices"
    )


def check_start(experiment: Experiment) -> None:
  """Raises a UserError unless the autoencoder that this one starts from is finished and has the same network."""
  stage = experiment.autoencoder
  if isinstance(stage, Stage) and stage.start and (changed := differences(
    to_data(load_codec(stage.start)[0]), to_data(stage.objective.network), "autoencoder.objective.network"
  )):
    raise UserError(f"autoencoder.start={stage.start!r} has another network: {'; '.join(changed[:3])}; make them equal")


def check_shapes(model: Model, data: Any) -> None:
  """Builds both networks as shapes: a size that does not fit is a person's mistake, and costs nothing."""
  model.codec.latent_spec(model.data)
  check_classes(model, data)
  try:
    for size in shapes(data):
      of_size(model, size)
    check_denoiser(model)
    for size in shapes(data):
      example(resized(model, size))
  except (ValueError, TypeError) as error:
    raise UserError(" ".join(str(error).split())) from error


def check_denoiser(model: Model) -> None:
  """Raises a UserError where the denoiser breaks the contract of networks, or does not fit its latents or inputs."""
  objective, batch, key = model.objective, example(model), jax.eval_shape(lambda: jax.random.key(0))
  params = jax.eval_shape(objective.init_conditioners, key, batch)
  inputs = jax.eval_shape(objective.inputs, params, frozen_shapes(model), batch, key)
  check_network(objective.network, model.latents(1), inputs)


def check_classes(model: Model, data: Any) -> None:
  """Raises a UserError unless data, conditioners and network agree on the number of classes."""
  known = {f"{name}.classes": each.classes for name, each in model.conditioners.items() if isinstance(each, ClassLabel)}
  known |= {"network.classes": model.objective.network.classes} if isinstance(model.objective.network, (DiT, UNet)) else {}
  if known and set(known.values()) != {data.classes}:
    label = f"(ClassLabel(classes={data.classes}),)" if data.classes else "()"
    listed = ", ".join(f"{name}={count}" for name, count in known.items())
    raise UserError(
      f"data has {data.classes} classes, the denoiser {listed}; --set denoiser.objective.network.classes={data.classes} "
      f"--set 'denoiser.objective.conditioners={label}'"
    )


def rehearse(experiment: Experiment, model: Model, name: str) -> tuple[TrainState, dict, Any] | None:
  """A stage's state, batch and frozen networks as shapes, after one loss of them: whatever does not fit together is told
  before anything is done.  None where the stage has no steps."""
  stage, data = getattr(experiment, name), experiment.data
  if not stage.steps:
    return None
  if hasattr(stage.objective, "check"):
    stage.objective.check()
  batch, frozen = RELIES_ON[name](stage, model, data)
  key, tx = jax.random.key(0), stage.optimizer.build(stage.steps)
  init = lambda key, batch, frozen: init_state(*stage.objective.init(key, batch, frozen), tx, stage.ema)
  state = jax.eval_shape(init, key, batch, frozen)
  jax.eval_shape(stage.objective.loss, state.params, state.extra, state.ema[0], frozen, batch, key)
  return state, batch, frozen


def autoencoder_inputs(stage: Stage, model: Model, data: Any) -> tuple[dict, dict]:
  each = lambda dtype: jax.ShapeDtypeStruct((stage.batch_size,), dtype)
  place = {"row": each(jnp.int32), "stratum": each(jnp.float32)}
  return batched(model.data, stage.batch_size) | place, lpips_weights(stage.objective)


def denoiser_inputs(stage: Stage, model: Model, data: Any) -> tuple[dict, dict]:
  return example(model, stage.batch_size), frozen_shapes(model)


RELIES_ON = {"autoencoder": autoencoder_inputs, "denoiser": denoiser_inputs}  # stage -> its batch and frozen networks as shapes


def lpips_weights(objective: Any) -> Any:
  """{"lpips": …}, what the perceptual term of an autoencoder's objective compares by; {} where it has none."""
  if not getattr(objective, "perceptual_weight", 0):
    return {}
  if not objective.lpips:
    raise UserError(
      f"perceptual_weight={objective.perceptual_weight} without weights; set lpips to a file that jldm convert --kind lpips made"
    )
  return {"lpips": perceptual.unpack(safetensors.read(Path(objective.lpips)))}
