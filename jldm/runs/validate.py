"""What can be refused is refused before anything is written: numbers, shapes, and one loss of each stage, as shapes."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jldm.config.experiment import Experiment, Stage
from jldm.config.serialize import differences, to_data
from jldm.core.errors import UserError
from jldm.data.buckets import shapes
from jldm.distributed import sharding
from jldm.inference import pipeline
from jldm.interop import safetensors
from jldm.metrics import perceptual
from jldm.runs.latents import degradation, handed, masked
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
  if stage.start and (changed := differences(
    to_data(pipeline.load_codec(stage.start)[0]), to_data(stage.objective.network), "autoencoder.objective.network"
  )):
    raise UserError(f"autoencoder.start={stage.start!r} has another network: {'; '.join(changed[:3])}; make them equal")


def check_shapes(model: pipeline.Model, data: Any) -> None:
  """Builds both networks as shapes: a size that does not fit is a person's mistake, and costs nothing."""
  if data.channels != model.autoencoder.channels:
    raise UserError(f"data has {data.channels} channels and the autoencoder {model.autoencoder.channels}; make them equal")
  known = getattr(model.denoiser, "classes", data.classes)
  if known != data.classes:
    raise UserError(
      f"data has {data.classes} classes and the denoiser {known}; --set denoiser.objective.network.classes={data.classes}"
    )
  try:
    for size in shapes(data):
      pipeline.resized(model, size)
      if model.condition is not None:
        image = jax.ShapeDtypeStruct((1, *size, data.channels), jnp.float32)
        key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        jax.eval_shape(lambda images, keys: model.condition.example(images, keys), image, key)
    pipeline.codec_shapes(model)
  except (ValueError, TypeError) as error:
    raise UserError(" ".join(str(error).split())) from error


def rehearse(experiment: Experiment, model: pipeline.Model, name: str) -> tuple[TrainState, dict, Any] | None:
  """A stage's state, batch and frozen networks as shapes, after one loss of them: whatever does not fit together is told
  before anything is done.  None where the stage has no steps."""
  stage, data = getattr(experiment, name), experiment.data
  if not stage.steps:
    return None
  if hasattr(stage.objective, "check"):
    stage.objective.check()
  each = lambda dtype, *shape: jax.ShapeDtypeStruct((stage.batch_size, *shape), dtype)
  latent, image = each(jnp.float32, *model.latent_shape), each(jnp.uint8, data.height, data.width, data.channels)
  batches_and_frozen = {
    "autoencoder": ({"image": image}, lpips_weights(stage.objective)),
    "denoiser": ({"mean": latent, "log_variance": latent}, handed(model, pipeline.codec_shapes(model))),
  }
  batch, frozen = batches_and_frozen[name]
  if name == "denoiser":
    batch = batch | ({"image": image} if masked(model) else {}) | ({"source": latent} if degradation(experiment) else {})
  batch = batch | {"label": each(jnp.int32), "row": each(jnp.int32), "stratum": each(jnp.float32)}
  key, tx = jax.random.key(0), stage.optimizer.build(stage.steps)
  state = jax.eval_shape(lambda key, batch: init_state(*stage.objective.init(key, batch), tx, stage.ema), key, batch)
  jax.eval_shape(stage.objective.loss, state.params, state.extra, state.ema[0], frozen, batch, key)
  return state, batch, frozen


def lpips_weights(objective: Any) -> Any:
  """What the perceptual term of an autoencoder's objective compares by; nothing where it has none."""
  if not getattr(objective, "perceptual_weight", 0):
    return ()
  if not objective.lpips:
    raise UserError(
      f"perceptual_weight={objective.perceptual_weight} without weights; set lpips to a file that jldm convert --kind lpips made"
    )
  return perceptual.unpack(safetensors.read(Path(objective.lpips)))
