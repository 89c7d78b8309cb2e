"""The training set in the latent space of a codec, in two caches under hashes of what they depend on:

W/latents/<hash>/      the moments of the latents: by the codec's network and parameters, and the data
W/conditions/<hash>/   what the denoiser's conditioners need of each example: by the conditioners and the standardised codec too
"""

from collections.abc import Callable, Iterator
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from jldm.config.serialize import to_data, without_execution_fields
from jldm.core.keys import row_keys
from jldm.core.specs import Loaded
from jldm.data.batches import in_order
from jldm.data.buckets import Buckets
from jldm.data.source import SourceSlice, Zipped
from jldm.distributed import multihost, sharding
from jldm.inference.load import Model
from jldm.models.autoencoders import posterior as posteriors
from jldm.models.codecs import codec as codecs
from jldm.runs.run import Run
from jldm.storage import array_cache

SOURCE_SEED = 0  # of noise and masks in source pictures: they belong to the data, not to a run


def measure_latents(run: Run, params: Any, train_set: Any, mesh: Mesh) -> dict:
  """The mean and std of the latents that the training set has by these parameters."""
  cache = cache_moments(run, {"params": params}, train_set, mesh)
  statistics = codecs.measure_statistics(
    posteriors.posterior_of(b) for b, _ in in_order(cache, 4096, pad=False)
  )
  listed = lambda values: " ".join(f"{value:.3f}" for value in np.asarray(values))
  if multihost.is_primary():
    print(f"codec: latents have mean {listed(statistics.mean)}, std {listed(statistics.std)} per channel")
  return statistics._asdict()


def encode_training_set(run: Run, codec: dict, source: Any, mesh: Mesh) -> Any:
  """What the denoiser trains on, the moments of the training set and what its conditioners need: read
  from disk, or made now.
  """
  cached = cache_moments(run, codec, source, mesh)
  if not run.model.conditioners:
    return cached
  frozen, objective = {"codec": Loaded(run.model.codec, codec)}, run.model.objective
  key = jax.random.key(SOURCE_SEED)

  def conditions(frozen: dict, batch: dict) -> dict:
    return objective.cache(frozen, batch, row_keys(key, batch["row"]))

  return zip_sources(
    cached, open_or_write_cache(run, conditions_folder(run, codec), frozen, conditions, source, mesh)
  )


def cache_moments(run: Run, codec: dict, source: Any, mesh: Mesh) -> Any:
  """The raw posteriors of the training set: mean and log_variance [N, h, w, c], or by part."""

  def encode(codec: dict, batch: dict) -> dict:
    return posteriors.posterior_moments(run.model.codec.encode(codec, batch))

  encoder = {"params": codec["params"]}
  return open_or_write_cache(run, moments_folder(run, encoder), encoder, encode, source, mesh)


def open_or_write_cache(
  run: Run, folder: Path, frozen: Any, encode: Callable[[Any, dict], dict], source: Any, mesh: Mesh
) -> Any:
  """encode(frozen, batch) of every example, as `folder` has it or made now, by every process some
  parts on its own devices.
  """
  own = sharding.local_mesh(mesh)
  batch_size = math.ceil(run.encoding_batch_size / own.size) * own.size
  placed, arrays = sharding.replicate(own, sharding.fetch(frozen)), jax.jit(encode)

  def encode_part(part: SourceSlice) -> Iterator[dict]:
    start = part.start
    for batch, count in run.notice.between(in_order(part, batch_size), alone=True):
      rows = {"row": np.arange(start, start + batch_size, dtype=np.uint32)}
      made = jax.device_get(arrays(placed, sharding.shard_batch(own, batch | rows)))
      yield {name: array[:count] for name, array in made.items()}
      start += count

  with run.clock.on("encode"):
    found = array_cache.open_cache(folder)
    if multihost.all_processes(found is not None):
      return found
    return array_cache.write_cache(
      folder, source, encode_part, jax.process_index(), jax.process_count(), run.notice.check
    )


def zip_sources(*sources: Any) -> Any:
  """Sources of the same examples as one, bucket by bucket."""
  if isinstance(sources[0], Buckets):
    return Buckets(tuple(Zipped(each) for each in zip(*(source.sources for source in sources))))
  return Zipped(sources)


def open_encoded(run: Run, codec: dict) -> Any:
  """What `encode_training_set` left on disk; None where a part of it is not there any more, or damaged."""
  folders = [moments_folder(run, codec)] + ([conditions_folder(run, codec)] if run.model.conditioners else [])
  caches = [array_cache.open_cache(folder) for folder in folders]
  return (
    None
    if any(cache is None for cache in caches)
    else caches[0]
    if len(caches) == 1
    else zip_sources(*caches)
  )


def moments_folder(run: Run, codec: dict) -> Path:
  return run.workdir / "latents" / moments_hash(codec, run.model, run.experiment.data)


def conditions_folder(run: Run, codec: dict) -> Path:
  return run.workdir / "conditions" / conditions_hash(codec, run.model, run.experiment.data)


def moments_hash(codec: dict, model: Model, data: Any) -> str:
  """What cached moments depend on: the encoder's parameters, the codec and the data."""
  return config_hash([without_execution_fields(to_data(model.codec)), to_data(data)], codec["params"])


def conditions_hash(codec: dict, model: Model, data: Any) -> str:
  """What cached conditions depend on: the conditioners, the codec with its parameters, and the data."""
  network = without_execution_fields(to_data(model.codec))
  return config_hash([network, to_data(data), to_data(model.objective.conditioners)], codec)


def config_hash(config: Any, arrays: Any) -> str:
  hashed = hashlib.blake2b(json.dumps(config).encode(), digest_size=8)
  for leaf in jax.tree.leaves(sharding.fetch(arrays)):
    hashed.update(np.ascontiguousarray(leaf).data)
  return hashed.hexdigest()
