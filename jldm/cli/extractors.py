"""Networks of figures for `jldm convert`: those that features and LPIPS are computed by."""

import functools
import hashlib
from pathlib import Path
from typing import Any

from jldm.core.errors import UserError
from jldm.interop import flat, inception, lpips as packaged, safetensors, vit
from jldm.metrics import perceptual
from jldm.metrics.extractors import weights
from jldm.metrics.extractors.extractor import find_extractor


def import_lpips(source: Path, out: Path) -> str:
  """Converts the parameters of the lpips package."""
  params = perceptual.unpack_lpips(packaged.rename(safetensors.tensors(source)))
  arrays = flat.flatten(params)
  safetensors.write(out, arrays, {"format": "jldm", "kind": "lpips"})
  return f"{out}: {describe_arrays(arrays)}"


def import_extractor(kind: str, source: Path, out: Path) -> str:
  """Converts the published weights of a feature extractor; OUT records the hash of the published file."""
  metadata, theirs = safetensors.read_header(source).metadata, safetensors.tensors(source)
  if "source" in metadata and metadata.get("digest") != weights.arrays_digest(theirs):
    raise UserError(f"{str(source)!r} was changed after it was made from a published file; make it again")
  with source.open("rb") as file:
    origin = metadata.get("source") or hashlib.file_digest(file, "sha256").hexdigest()
  arrays = flat.flatten(find_extractor(kind).load(EXTRACTORS[kind](theirs)))
  safetensors.write(
    out, arrays, {"format": "jldm", "kind": kind, "source": origin, "digest": weights.arrays_digest(arrays)}
  )
  name = weights.OFFICIAL.get(origin)
  status = f"official, for {name}" if name else "not known as official"
  return f"{out}: {describe_arrays(arrays)}, from a file of sha256 {origin}: {status}"


def describe_arrays(arrays: dict[str, Any]) -> str:
  return f"{len(arrays)} arrays, {sum(array.nbytes for array in arrays.values()) / 1e6:.1f} MB"


EXTRACTORS = {  # how the names of the published arrays are changed
  "inception": inception.rename,
  "dinov2": functools.partial(vit.rename, "dinov2"),
  "clip": functools.partial(vit.rename, "clip"),
}
