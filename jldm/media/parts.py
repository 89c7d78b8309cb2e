"""Samples in parts, such as pictures with their captions: what is written of each."""

from pathlib import Path
from typing import Any

import numpy as np

from jldm.media import images as pictures

Parts = dict[str, np.ndarray]  # by part: [N, ...]


def is_picture(data: np.ndarray) -> bool:
  """Whether data [N, ...] are grey or RGB images, uint8 [N, H, W, C]."""
  return data.ndim == 4 and data.dtype == np.uint8 and data.shape[-1] in (1, 3)


def split_pictures(data: Parts) -> tuple[Parts, Parts]:
  """(the parts that are pictures, all others)."""
  shown = {name: part for name, part in data.items() if is_picture(part)}
  return shown, {name: part for name, part in data.items() if name not in shown}


def write_parts(out: Path, data: Parts, labels: np.ndarray, provenance: dict[str, Any]) -> None:
  """Writes samples as one .npz with an array per part and `labels`; or into a folder, where each part of
  pictures has a folder of PNGs with a grid, and all other parts are arrays of parts.npz.
  """
  if out.suffix == ".npz":
    pictures.write_arrays(out, with_labels(data, labels), provenance)
    return
  shown, others = split_pictures(data)
  for name, images in shown.items():
    pictures.write_samples(out / name, images, labels, provenance | {"part": name})
  if others:
    out.mkdir(parents=True, exist_ok=True)
    pictures.write_arrays(out / "parts.npz", with_labels(others, labels), provenance)


def with_labels(data: Parts, labels: np.ndarray) -> Parts:
  return {**data, "labels": np.asarray(labels, np.int64)}
