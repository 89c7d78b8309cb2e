"""The training set in the latent space of a codec, cached on disk under hashes.

W/latents/<hash>/      the moments of the latents; the hash is of the codec, its parameters and the data
W/conditions/<hash>/   what the denoiser's conditioners cache of each example; the hash is also of the
                       conditioners and of the mean and std of the latents
"""

from collections.abc import Callable, Iterator, Mapping
import hashlib
import json
import math
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from jldm.config.serialize import to_data, without_execution_fields
from jldm.core.keys import row_keys
from jldm.core.specs import Loaded
from jldm.data.batches import in_order
from jldm.data.buckets import Buckets
from jldm.data.source import Extended, Source, SourceSlice, Zipped
from jldm.distributed import multihost, sharding
from jldm.inference.model import Model
from jldm.models.autoencoders import posterior as posteriors
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners.conditioner import tower_params
from jldm.runs.run import Run
from jldm.storage import array_cache

LEAST_SIGNAL = 0.01  # the share of a channel's variance below which it is taken for noise
NOTHING: Mapping = MappingProxyType({})
SOURCE_SEED = 0  # of the noise and masks of source pictures, which belong to the data and not to a run


def measure_latents(run: Run, params: Any, train_set: Any, mesh: Mesh) -> dict:
  """The mean and std per channel of the latents of the training set."""
  cache = cache_moments(run, {"params": params}, train_set, mesh)
  statistics = codecs.measure_statistics(
    posteriors.posterior_of(b) for b, _ in in_order(cache, 4096, pad=False)
  )
  text = lambda values: " ".join(f"{value:.3f}" for value in np.asarray(values))
  if multihost.is_primary():
    print(
      f"codec: latents have mean {text(statistics.mean)}, std {text(statistics.std)}, "
      f"signal {text(statistics.signal)} of the variance per channel"
    )
    if warning := collapse_warning(run.stage.name, np.asarray(statistics.signal)):
      print(warning)
  return {"mean": statistics.mean, "std": statistics.std}


def collapse_warning(stage: str, signal: np.ndarray) -> str:
  """A line about channels, signal [C], that are noise alone; "" if none is."""
  noise = int((signal < LEAST_SIGNAL).sum())
  if not noise:
    return ""
  return (
    f"warning: {noise} of {len(signal)} channels of the latents are noise: less than {LEAST_SIGNAL:.0%} of "
    f"their variance is signal; a lower {stage}.objective.kl_weight, or a longer training, keeps more"
  )


def encode_training_set(
  run: Run, codec: dict, source: Any, mesh: Mesh, frozen: Mapping[str, Loaded] = NOTHING
) -> Any:
  """The source that the denoiser trains on: the moments of the training set, and what conditioners cache.

  Both are read from disk, or computed and written if they are not there.  `frozen` has the towers of the
  conditioners.
  """
  cached = cache_moments(run, codec, source, mesh)
  if not run.model.conditioners:
    return cached
  towers = towers_of(run.model, frozen)
  needed, objective = {"codec": Loaded(run.model.codec, codec)} | towers, run.model.objective
  key = jax.random.key(SOURCE_SEED)

  def conditions(frozen: dict, batch: dict) -> dict:
    return objective.cache(frozen, batch, row_keys(key, batch["row"]))

  return zip_sources(
    cached,
    open_or_write_cache(
      run, conditions_folder(run, codec, towers), needed, conditions, with_derived(run.model, source), mesh
    ),
  )


def towers_of(model: Model, frozen: dict[str, Loaded]) -> dict[str, Loaded]:
  """The towers of a model's conditioners, by name."""
  return {name: frozen[name] for name in tower_params(tuple(model.conditioners.values()), frozen)}


def with_derived(model: Model, source: Any) -> Any:
  """The source with the arrays that a model's conditioners derive of an example."""
  if isinstance(source, Buckets):
    return Buckets(tuple(with_derived(model, each) for each in source.sources))
  derive = lambda batch: {
    name: array for each in model.conditioners.values() for name, array in each.derive(batch).items()
  }
  return (
    Extended(source, derive) if any(each.derived_spec() for each in model.conditioners.values()) else source
  )


def cache_moments(run: Run, codec: dict, source: Any, mesh: Mesh) -> Any:
  """The raw posteriors of the training set: mean and log_variance [N, h, w, c], or a dict by part."""

  def encode(codec: dict, batch: dict) -> dict:
    return posteriors.posterior_moments(run.model.codec.encode(codec, batch))

  encoder = {"params": codec["params"]}
  return open_or_write_cache(run, moments_folder(run, encoder), encoder, encode, source, mesh)


def open_or_write_cache(
  run: Run, folder: Path, frozen: Any, encode: Callable[[Any, dict], dict], source: Any, mesh: Mesh
) -> Any:
  """encode(frozen, batch) of every example, from `folder`, or computed and written to it.

  The processes share the work: each encodes some of the parts on its local devices.
  """
  with run.clock.measure("encode"):
    cache = array_cache.open_cache(folder)
    if multihost.all_processes(cache is not None):
      return cache
    return array_cache.write_cache(
      folder,
      source,
      part_encoder(run, frozen, encode, mesh),
      jax.process_index(),
      jax.process_count(),
      run.notice.raise_if_requested,
    )


def part_encoder(
  run: Run, frozen: Any, encode: Callable[[Any, dict], dict], mesh: Mesh
) -> Callable[[SourceSlice], Iterator[dict]]:
  """part -> encode(frozen, batch) of its examples, batch by batch, on the devices of this process."""
  local = sharding.local_mesh(mesh)
  batch_size = math.ceil(run.encoding_batch_size / local.size) * local.size
  frozen, encode = sharding.replicate(local, sharding.fetch(frozen)), jax.jit(encode)

  def encode_part(part: SourceSlice) -> Iterator[dict]:
    start = part.start
    for batch, count in run.notice.checked(in_order(part, batch_size), alone=True):
      rows = {"row": np.arange(start, start + batch_size, dtype=np.uint32)}
      encoded = jax.device_get(encode(frozen, sharding.shard_batch(local, batch | rows)))
      yield {name: array[:count] for name, array in encoded.items()}
      start += count

  return encode_part


def encode_examples(run: Run, frozen: dict, source: Source, mesh: Mesh) -> dict:
  """The arrays of `encode_training_set` for a few examples, [N, ...], in memory and never on disk."""
  objective, key = run.stage.objective, jax.random.key(SOURCE_SEED)

  def encode(frozen: dict, batch: dict) -> dict:
    codec = frozen["codec"]
    moments = posteriors.posterior_moments(codec.model.encode(codec.params, batch))
    return moments | objective.cache(frozen, batch, row_keys(key, batch["row"]))

  with run.clock.measure("encode"):
    needed = {"codec": frozen["codec"]} | towers_of(run.model, frozen)
    source = with_derived(run.model, source)
    parts = list(part_encoder(run, needed, encode, mesh)(SourceSlice(source, 0, len(source))))
    run.notice.raise_if_requested()
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def zip_sources(*sources: Any) -> Any:
  """One source with all arrays of several sources of the same examples, bucket by bucket."""
  if isinstance(sources[0], Buckets):
    return Buckets(tuple(Zipped(each) for each in zip(*(source.sources for source in sources))))
  return Zipped(sources)


def open_encoded(run: Run, codec: dict, frozen: Mapping[str, Loaded] = NOTHING) -> Any:
  """What `encode_training_set` wrote; None if some of it is missing or damaged."""
  folders = [moments_folder(run, codec)]
  if run.model.conditioners:
    folders.append(conditions_folder(run, codec, towers_of(run.model, frozen)))
  caches = [array_cache.open_cache(folder) for folder in folders]
  if any(cache is None for cache in caches):
    return None
  return caches[0] if len(caches) == 1 else zip_sources(*caches)


def moments_folder(run: Run, codec: dict) -> Path:
  return run.workdir / "latents" / moments_hash(codec, run.model, run.experiment.data, run.data_identity)


def conditions_folder(run: Run, codec: dict, towers: Mapping[str, Loaded] = NOTHING) -> Path:
  hashed = conditions_hash(codec, run.model, run.experiment.data, run.data_identity, towers)
  return run.workdir / "conditions" / hashed


def moments_hash(codec: dict, model: Model, data: Any, identity: dict | None = None) -> str:
  """A hash of everything that cached moments depend on: codec, encoder's parameters, data."""
  return config_hash(
    [without_execution_fields(to_data(model.codec)), data_config(data, identity)], codec["params"]
  )


def conditions_hash(
  codec: dict, model: Model, data: Any, identity: dict | None = None, towers: Mapping[str, Loaded] = NOTHING
) -> str:
  """The hash of what cached conditions depend on: conditioners, codec and towers with their parameters,
  data.
  """
  network = without_execution_fields(to_data(model.codec))
  arrays = [codec, {name: each.params for name, each in towers.items()}] if towers else codec
  return config_hash([network, data_config(data, identity), to_data(model.objective.conditioners)], arrays)


def data_config(data: Any, identity: dict | None) -> Any:
  """What cached arrays depend on of the data: the fields, and what the examples are.

  If that is known, the folder that they are read from is not part of it; nor ever is their order.
  """
  left_out = ("balance", "data_dir") if identity else ("balance",)
  fields = {name: value for name, value in to_data(data).items() if name not in left_out}
  return [fields, identity] if identity else fields


def config_hash(config: Any, arrays: Any) -> str:
  hashed = hashlib.blake2b(json.dumps(config).encode(), digest_size=8)
  for leaf in jax.tree.leaves(sharding.fetch(arrays)):
    hashed.update(np.ascontiguousarray(leaf).data)
  return hashed.hexdigest()
