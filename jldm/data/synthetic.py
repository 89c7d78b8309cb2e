"""Computed pictures, for tests and smoke runs."""

import dataclasses
import zlib

import numpy as np

from jldm.core.errors import UserError
from jldm.core.specs import Spec
from jldm.data import views
from jldm.data.buckets import Buckets, bucket_shapes, picture_specs
from jldm.data.captions import pad_captions
from jldm.data.dataset import Dataset
from jldm.data.source import Arrays, Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthetic(Dataset):
  """Waves whose direction and length encode the class; phase and contrast are random."""

  height: int = 32
  width: int = 32
  channels: int = 1
  classes: int = 0  # 0: unconditional, every label -1
  count: int = 256  # images in each split
  train: str = "train"
  held_out: str = "test"
  balance: bool = False  # whether every class is drawn equally often in training
  mirror: bool = False  # whether the training split also has every picture flipped left to right
  labelled: float = 1.0  # share of training labels that are kept; the others become -1
  labelled_times: int = 1  # how often labelled examples repeat in an epoch, if labelled < 1
  caption: int = 0  # bytes of an example's caption, which names its class; 0: none
  buckets: tuple[tuple[int, int], ...] = ()  # further (height, width), over which the images are dealt out
  augmentation = views.NO_AUGMENTATION

  @property
  def specs(self) -> tuple[Spec, ...]:
    """The arrays of one example, one spec per shape of pictures."""
    caption = {"caption": (np.uint8, (self.caption,))} if self.caption else {}
    return picture_specs(self, contrast=(np.float32, (1,)), **caption)

  def open(self, split: str) -> Source | Buckets:
    """The images, labels and contrasts of a split, the same at every call.

    Raises: UserError for a split that is neither `train` nor `held_out`."""
    if split not in (self.train, self.held_out):
      raise UserError(f"split {split!r} of synthetic data; expected {self.train!r} or {self.held_out!r}")
    views.check_views(self)
    training, every = split == self.train, bucket_shapes(self)
    random = np.random.default_rng(zlib.crc32(split.encode()))
    phase = random.uniform(0, 1, (self.count, 1, 1, self.channels))
    contrast = random.uniform(0.5, 1, (self.count, 1, 1, 1))
    number = np.arange(self.count)
    kind, bucket = number % max(self.classes, 1), number // max(self.classes, 1) % len(every)
    label = np.asarray(kind if self.classes else kind - 1, np.int32)
    label = views.keep_labels(label, self.labelled) if training else label
    times = self.labelled_times if training and self.labelled < 1 else 1
    groups = [
      (shape, views.repeat_labelled(np.flatnonzero(bucket == k), label, times))
      for k, shape in enumerate(every)
    ]
    sources = [
      Arrays(
        {
          "image": self.waves(shape, kind[rows], phase[rows], contrast[rows]),
          "label": label[rows],
          "contrast": np.asarray(contrast[rows, 0, 0], np.float32),
        }
        | ({"caption": self.captions(kind[rows])} if self.caption else {})
      )
      for shape, rows in groups
      if len(rows)
    ]
    sources = [views.Mirrored(source) for source in sources] if training and self.mirror else sources
    return Buckets(tuple(sources)) if self.buckets else sources[0]

  def captions(self, kind: np.ndarray) -> np.ndarray:
    """UTF-8 bytes uint8 [n, caption], cut or padded with zeros: "waves of class 3"."""
    return pad_captions([f"waves of class {each}".encode() for each in kind], self.caption)

  def waves(
    self, shape: tuple[int, int], kind: np.ndarray, phase: np.ndarray, contrast: np.ndarray
  ) -> np.ndarray:
    """Images uint8 [n, H, W, C] of (H, W) = `shape`: kind [n], phase [n, 1, 1, C], contrast [n, 1, 1, 1]."""
    height, width = shape
    angle, waves = np.pi * kind / max(self.classes, 1), 1 + kind % 3
    y, x = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    wave = np.cos(2 * np.pi * ((waves[:, None, None] * along)[..., None] + phase))
    return np.rint(127.5 + 127.5 * contrast * wave).astype(np.uint8)
