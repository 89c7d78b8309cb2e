"""Pictures made of nothing, for tests and smoke runs."""

import dataclasses
import zlib

import numpy as np

from jldm.core.errors import UserError
from jldm.data.source import Arrays, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthetic:
  """Waves whose direction and length tell their class, with a phase and a contrast of their own; as `ImageData`."""
  height: int = 32
  width: int = 32
  channels: int = 1
  classes: int = 0  # 0: unconditional, every label -1
  count: int = 256  # images in each split
  train: str = "train"
  held_out: str = "test"

  def open(self, split: str) -> Source:
    """The images of a split, the same at every call; UserError for a split that is neither `train` nor `held_out`."""
    if split not in (self.train, self.held_out):
      raise UserError(f"split {split!r} of synthetic data; expected {self.train!r} or {self.held_out!r}")
    random = np.random.default_rng(zlib.crc32(split.encode()))
    kind = np.arange(self.count) % max(self.classes, 1)
    phase = random.uniform(0, 1, (self.count, 1, 1, self.channels))
    contrast = random.uniform(0.5, 1, (self.count, 1, 1, 1))
    angle, waves = np.pi * kind / max(self.classes, 1), 1 + kind % 3
    y, x = np.meshgrid(np.arange(self.height) / self.height, np.arange(self.width) / self.width, indexing="ij")
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    wave = np.cos(2 * np.pi * ((waves[:, None, None] * along)[..., None] + phase))
    image = np.rint(127.5 + 127.5 * contrast * wave).astype(np.uint8)
    return Arrays({"image": image, "label": np.asarray(kind if self.classes else kind - 1, np.int32)})
