"""Features of pictures, extracted over all devices and kept on disk under a hash of what they depend on."""

from collections.abc import Iterator
import dataclasses
import hashlib
from pathlib import Path
import zipfile

import jax
import numpy as np

from jldm.core.errors import UserError
from jldm.core.files import replace_file
from jldm.data.source import Arrays, Source
from jldm.distributed import multihost, sharding
from jldm.metrics.extractors.extractor import LoadedExtractor

CHUNK = 1024  # pictures read at once where nothing is computed of them


@dataclasses.dataclass(frozen=True)
class Features:
  """What is known of N pictures: features float32 [N, D], logits float32 [N, K], K = 0 without a
  classifier, labels int32 [N]; and of which extractor.
  """

  features: np.ndarray
  logits: np.ndarray
  labels: np.ndarray
  source: str

  def __len__(self) -> int:
    return len(self.labels)

  def take(self, rows: np.ndarray | slice) -> "Features":
    return Features(self.features[rows], self.logits[rows], self.labels[rows], self.source)


def concatenate_features(*parts: Features) -> Features:
  """All rows of one extractor's features."""
  columns = zip(*((part.features, part.logits, part.labels) for part in parts))
  return Features(*(np.concatenate(column) for column in columns), parts[0].source)


def extract_features(
  loaded: LoadedExtractor, source: Source, rows: np.ndarray, devices: sharding.Devices = None
) -> Features:
  """Features of rows int [N] of a source: a batch is shared by the devices, and what fills up the last
  one is dropped.

  Raises:
    UserError: pictures that do not fit the extractor, or features that are not finite.
  """
  mesh, batch_size = sharding.mesh_for_samples(len(rows), loaded.extractor.batch_size, devices)
  params, apply = sharding.replicate(mesh, loaded.params), jax.jit(loaded.extractor.apply)
  found = []
  for start in range(0, len(rows), batch_size):
    batch = source[rows[np.minimum(np.arange(start, start + batch_size), len(rows) - 1)]]
    features, logits = apply(params, sharding.shard_batch(mesh, loaded.extractor.prepare(batch["image"])))
    logits = np.zeros((batch_size, 0)) if logits is None else logits
    features, logits = sharding.fetch((features, logits))
    each = (
      np.asarray(features, np.float32),
      np.asarray(logits, np.float32),
      np.asarray(batch["label"], np.int32),
    )
    found.append(Features(*each, loaded.source).take(slice(len(rows) - start)))
  whole = concatenate_features(*found)
  if bad := np.count_nonzero(~np.isfinite(whole.features).all(1)):
    raise UserError(
      f"features of {bad} of {len(rows)} pictures are not finite; the extractor's weights are broken"
    )
  return whole


def features_of_images(
  loaded: LoadedExtractor, images: np.ndarray, labels: np.ndarray, devices: sharding.Devices = None
) -> Features:
  """Features of images uint8 [N, H, W, C] with labels int [N]."""
  return extract_features(
    loaded, Arrays({"image": images, "label": np.asarray(labels, np.int32)}), np.arange(len(images)), devices
  )


def cached_features(
  folder: Path, loaded: LoadedExtractor, source: Source, rows: np.ndarray, devices: sharding.Devices = None
) -> Features:
  """`extract_features`, or what an earlier call left in `folder` under the hash of these very pictures and this
  extractor.
  """
  path = folder / f"features-{cache_key(loaded, source, rows)}.npz"
  stored = read_cached_features(path, loaded.source)
  if multihost.all_processes(stored is not None):
    return stored
  found = extract_features(loaded, source, rows, devices)
  if multihost.is_primary():
    with replace_file(path) as file:
      np.savez(file, features=found.features, logits=found.logits, labels=found.labels)
  return found


def read_cached_features(path: Path, source: str) -> Features | None:
  """What `cached_features` wrote; None if it is not there or damaged."""
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
      return Features(stored["features"], stored["logits"], stored["labels"], source)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None


def cache_key(loaded: LoadedExtractor, source: Source, rows: np.ndarray) -> str:
  digest = hashlib.blake2b(loaded.source.encode(), digest_size=12)
  for batch in read_chunks(source, rows):
    for name in ("image", "label"):
      digest.update(f"{batch[name].dtype} {batch[name].shape}".encode())
      digest.update(np.ascontiguousarray(batch[name]))
  return digest.hexdigest()


def read_labels(source: Source, rows: np.ndarray) -> np.ndarray:
  """int32 [N]."""
  return np.concatenate([np.asarray(batch["label"], np.int32) for batch in read_chunks(source, rows)])


def read_chunks(source: Source, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
  return (source[rows[start : start + CHUNK]] for start in range(0, len(rows), CHUNK))
