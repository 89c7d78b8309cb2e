"""Features of pictures: extracted over all devices, and cached on disk under a hash of what they depend
on.
"""

from collections.abc import Iterator
import dataclasses
import hashlib
from pathlib import Path
import zipfile

import jax
import numpy as np

from jldm.core.errors import UserError
from jldm.core.files import replace_file
from jldm.core.shapes import batch_rows
from jldm.data.source import Arrays, Source
from jldm.distributed import multihost, sharding
from jldm.metrics.extractors.extractor import LoadedExtractor

CHUNK = 1024  # pictures read at once for hashes and labels


@dataclasses.dataclass(frozen=True)
class Features:
  """Features of N pictures.

  features float32 [N, D]; logits float32 [N, K], K = 0 if the extractor is no classifier; labels int32 [N];
  source: the extractor, `LoadedExtractor.source`.
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
  """Joins features of one extractor."""
  columns = zip(*((part.features, part.logits, part.labels) for part in parts))
  return Features(*(np.concatenate(column) for column in columns), parts[0].source)


def extract_features(
  extractor: LoadedExtractor, source: Source, rows: np.ndarray, devices: sharding.Devices = None
) -> Features:
  """Extracts the features of rows int [N] of a source; the devices share each batch.

  Raises:
    UserError: the pictures do not fit the extractor, or a feature is not finite.
  """
  mesh, batch_size = sharding.mesh_for_samples(len(rows), extractor.definition.batch_size, devices)
  params = sharding.replicate(mesh, extractor.params)
  apply = jax.jit(extractor.definition.apply)
  parts = []
  for start in range(0, len(rows), batch_size):
    batch = source[rows[batch_rows(start, batch_size, len(rows))]]
    features, logits = apply(params, sharding.shard_batch(mesh, extractor.definition.prepare(batch["image"])))
    logits = np.zeros((batch_size, 0)) if logits is None else logits
    features, logits = sharding.fetch((features, logits))
    each = (
      np.asarray(features, np.float32),
      np.asarray(logits, np.float32),
      np.asarray(batch["label"], np.int32),
    )
    parts.append(Features(*each, extractor.source).take(slice(len(rows) - start)))
  whole = concatenate_features(*parts)
  if bad := np.count_nonzero(~np.isfinite(whole.features).all(1)):
    raise UserError(
      f"features of {bad} of {len(rows)} pictures are not finite; the extractor's weights are broken"
    )
  return whole


def features_of_images(
  extractor: LoadedExtractor, images: np.ndarray, labels: np.ndarray, devices: sharding.Devices = None
) -> Features:
  """Features of images uint8 [N, H, W, C] with labels int [N]."""
  return extract_features(
    extractor,
    Arrays({"image": images, "label": np.asarray(labels, np.int32)}),
    np.arange(len(images)),
    devices,
  )


def cached_features(
  folder: Path, extractor: LoadedExtractor, source: Source, rows: np.ndarray, devices: sharding.Devices = None
) -> Features:
  """Extracts features, or reads them from `folder` if an earlier call had the same pictures and extractor."""
  path = folder / f"features-{cache_key(extractor, source, rows)}.npz"
  stored = read_cached_features(path, extractor.source)
  if multihost.all_processes(stored is not None):
    return stored
  extracted = extract_features(extractor, source, rows, devices)
  if multihost.is_primary():
    with replace_file(path) as file:
      np.savez(file, features=extracted.features, logits=extracted.logits, labels=extracted.labels)
  return extracted


def read_cached_features(path: Path, source: str) -> Features | None:
  """Reads a file of `cached_features`; None if it is missing or damaged."""
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
      return Features(stored["features"], stored["logits"], stored["labels"], source)
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None


def cache_key(extractor: LoadedExtractor, source: Source, rows: np.ndarray) -> str:
  """The hash of an extractor and of images with their labels."""
  digest = hashlib.blake2b(extractor.source.encode(), digest_size=12)
  for batch in read_chunks(source, rows):
    for name in ("image", "label"):
      digest.update(f"{batch[name].dtype} {batch[name].shape}".encode())
      digest.update(np.ascontiguousarray(batch[name]))
  return digest.hexdigest()


def labels_of_rows(source: Source, rows: np.ndarray) -> np.ndarray:
  """The labels of rows int [N], int32 [N]."""
  return np.concatenate([np.asarray(batch["label"], np.int32) for batch in read_chunks(source, rows)])


def read_chunks(source: Source, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
  """Batches of CHUNK examples."""
  return (source[rows[start : start + CHUNK]] for start in range(0, len(rows), CHUNK))
