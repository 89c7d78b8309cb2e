"""The training set in the latent space of a codec: encoded once, kept under a hash of what it depends on, measured."""

from collections.abc import Iterator
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from jldm.config.experiment import Experiment
from jldm.config.serialize import to_data, without_execution_fields as what
from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.data.batches import in_order
from jldm.data.source import Part
from jldm.distributed import multihost, sharding
from jldm.inference import pipeline
from jldm.models.autoencoders.posterior import Gaussian
from jldm.models.codecs import codec as codecs
from jldm.runs.run import Run
from jldm.storage import array_cache, workdir as workdirs
from jldm.storage.checkpoint import Checkpoints

SOURCE_SEED = 0  # of noise and masks in source pictures: they belong to the data, not to a run


def committed_codec(model: pipeline.Model, workdir: Path, steps: int) -> dict:
  with Checkpoints(workdirs.checkpoints(workdir, "autoencoder"), read_only=True) as saved:
    if saved.latest() != steps:
      raise UserError(f"the autoencoder in {str(workdir)!r} is not finished; train it first: --stage autoencoder")
    return saved.restore(steps, {"codec": pipeline.codec_shapes(model)})["codec"]


def measured(run: Run, params: Any, train_set: Any, mesh: Mesh) -> dict:
  """The mean and std of the latents that the training set has by these parameters."""
  cache = encoded(run, {"params": params}, train_set, mesh)
  statistics = codecs.measure(Gaussian(b["mean"], b["log_variance"]) for b, _ in in_order(cache, 4096, pad=False))
  told = lambda values: " ".join(f"{value:.3f}" for value in np.asarray(values))
  if multihost.first():
    print(f"codec: latents have mean {told(statistics.mean)}, std {told(statistics.std)} a channel")
  return statistics._asdict()


def encoded(run: Run, codec: dict, source: Any, mesh: Mesh) -> Any:
  """The training set's cached moments under this codec, with what a condition is drawn from beside them, the pictures or the
  latents of its source pictures: as they are on disk, or encoded now, by every process some parts on its own devices."""
  network, degrade = run.model.autoencoder, degradation(run.experiment)
  own, codec = sharding.own(mesh), sharding.fetch(codec)
  batch_size = math.ceil(run.experiment.autoencoder.batch_size / own.size) * own.size
  placed, key = sharding.place(own, (codec, jax.random.key(SOURCE_SEED)))

  @jax.jit
  def arrays(codec: dict, images: jax.Array, rows: jax.Array, key: jax.Array) -> dict:
    found = codecs.encode(network, codec, images)._asdict() | ({"image": images} if masked(run.model) else {})
    if degrade is None:
      return found
    return found | {"source": codecs.encode(network, codec, degrade(codecs.pixels(images), row_keys(key, rows))).mean}

  def moments(part: Part) -> Iterator[dict]:
    start = part.start
    for batch, count in run.notice.between(in_order(part, batch_size), alone=True):
      shown = sharding.place_batch(own, (batch["image"], np.arange(start, start + batch_size, dtype=np.uint32)))
      found = jax.device_get(arrays(placed, *shown, key)) | {"label": batch["label"]}
      yield {name: array[:count] for name, array in found.items()}
      start += count

  with run.clock.on("encode"):
    folder = cache_of(run, codec)
    found = array_cache.open_cache(folder)
    if multihost.all_of(found is not None):
      return found
    return array_cache.write_like(folder, source, moments, jax.process_index(), jax.process_count(), run.notice.check)


def cache_of(run: Run, codec: dict) -> Path:
  return run.workdir / "latents" / codec_hash(codec, run.experiment)


def codec_hash(codec: dict, experiment: Experiment) -> str:
  """What cached moments depend on: the encoder's parameters, the network, the data, and what is made of them."""
  config = [what(to_data(experiment.autoencoder.objective.network)), to_data(experiment.data)]
  if masked(pipeline.of(experiment)):
    config.append("image")
  if degradation(experiment) is not None:
    config.append(to_data(degradation(experiment)))
  digest = hashlib.blake2b(json.dumps(config).encode(), digest_size=8)
  for leaf in jax.tree.leaves(codec):
    digest.update(np.ascontiguousarray(leaf).data)
  return digest.hexdigest()


def handed(model: pipeline.Model, codec: dict) -> codecs.Statistics | codecs.Encoder:
  """What a step of the denoiser needs of the codec."""
  if not masked(model):
    return codecs.Statistics(codec["mean"], codec["std"])
  return codecs.Encoder(codec["mean"], codec["std"], codec["params"], model.autoencoder)


def masked(model: pipeline.Model) -> bool:
  """Whether the denoiser is told of parts of a picture, which are drawn and encoded in its steps."""
  return hasattr(model.condition, "beside")


def degradation(experiment: Experiment) -> Any:
  """What makes the source pictures of a condition of pairs; None where there are none."""
  return getattr(getattr(experiment.denoiser.objective, "condition", None), "degradation", None)
