"""Samples in parts, such as pictures with their captions: which of them are pictures."""

import numpy as np

Parts = dict[str, np.ndarray]  # by part: [N, ...]


def is_picture(data: np.ndarray) -> bool:
  """Whether data [N, ...] are grey or RGB images, uint8 [N, H, W, C]."""
  return data.ndim == 4 and data.dtype == np.uint8 and data.shape[-1] in (1, 3)


def split_pictures(data: Parts) -> tuple[Parts, Parts]:
  """(the parts that are pictures, all others)."""
  shown = {name: part for name, part in data.items() if is_picture(part)}
  return shown, {name: part for name, part in data.items() if name not in shown}
