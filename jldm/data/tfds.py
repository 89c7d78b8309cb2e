"""Prepared TFDS data sets (array_record) as sources: no TensorFlow, no network.

Any data set in data_dir/name/[config/]version/ with a dataset_info.json can be read.  Its features
must have an `image` and, for conditional training, an integer `label` or a text `caption`.  A data
set that fits into memory is decoded once.
"""

import collections
from collections.abc import Callable, Iterable
import dataclasses
import hashlib
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from jldm.core.errors import UserError
from jldm.core.specs import Spec
from jldm.data import transforms, views
from jldm.data.buckets import Buckets, Shape, bucket_shapes, format_shapes, picture_specs
from jldm.data.builder import (
  class_names,
  dataset_features,
  describe_cut,
  find_dataset,
  has_captions,
  open_builder,
  open_records,
  stored_shapes,
)
from jldm.data.captions import pad_captions
from jldm.data.dataset import Dataset
from jldm.data.source import Arrays, Batch, Source
from jldm.media import open as opening

IN_MEMORY_BYTES = 2**30  # decoded images up to this size are held in memory
FINGERPRINTED = 8192  # examples of a split that its fingerprint reads, at most, evenly spaced
CHUNK = 1024  # records read at once on the way there


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageData(Dataset):
  """A prepared data set of images of one or a few sizes, and the splits to train on and to hold out."""

  name: str  # "digits", or "name/config"
  data_dir: str = "data"
  train: str = "train"  # splits may be sliced: "train[:95%]"
  held_out: str = "test"
  height: int = 32
  width: int = 32
  channels: int = 1
  classes: int = 0  # 0: unconditional, every label reads as -1
  balance: bool = False  # whether every class is drawn equally often in training
  mirror: bool = False  # whether the training split also has every picture flipped left to right
  labelled: float = 1.0  # share of training labels that are kept; the others become -1
  labelled_times: int = 1  # how often labelled examples repeat in an epoch, if labelled < 1
  buckets: tuple[tuple[int, int], ...] = ()  # further (height, width) that images have
  caption: int = 0  # bytes of an example's caption, longer ones are cut; 0: none
  augmentation = views.NO_AUGMENTATION

  @property
  def specs(self) -> tuple[Spec, ...]:
    """The arrays of one example, one spec per shape of pictures."""
    caption = {"caption": (np.uint8, (self.caption,))} if self.caption else {}
    return picture_specs(self, **caption)

  def title(self) -> str:
    """The name of the prepared data set."""
    return self.name

  def class_names(self) -> list[str]:
    """The names that the data set was prepared with, or that TFDS has; [] without labels or names."""
    return (class_names(open_builder(find_dataset(self.name, self.data_dir))) or []) if self.classes else []

  def notes(self) -> list[str]:
    """A line about captions that are cut, by split."""
    folder = find_dataset(self.name, self.data_dir)
    return list(describe_cut(self.name, open_builder(folder), self.caption)) if self.caption else []

  def open(self, split: str) -> Source | Buckets:
    """The examples of a split: image uint8 [B, H, W, C], label int32 [B], perhaps caption uint8 [B, L];
    one shape per batch.

    Raises: UserError if the data set is missing, not array_record, or does not match the fields.
    If it is too large for memory, only the first image is checked now and the others when they are
    read; with `buckets` or `labelled` < 1 the header of every image is checked now.
    """
    views.check_views(self)
    every = bucket_shapes(self)
    builder = open_builder(find_dataset(self.name, self.data_dir))
    check_image(self, builder)
    check_class_count(self, builder)
    check_captions(self, builder)
    records, training = open_records(builder, split), split == self.train
    sources = [Records(records, self)]
    if self.buckets or (training and (self.labelled < 1 or self.balance)):
      sizes, labels = scan_records(records, self, split)
      labels = views.keep_labels(labels, self.labelled) if training else labels
      times = self.labelled_times if training and self.labelled < 1 else 1
      groups = rows_by_shape(self, sizes) if self.buckets else {every[0]: np.arange(len(records))}
      groups = {shape: views.repeat_labelled(rows, labels, times) for shape, rows in groups.items()}
      sources = [
        views.Selected(
          Records(records, dataclasses.replace(self, height=height, width=width)), rows, labels[rows]
        )
        for (height, width), rows in groups.items()
      ]
    # The features may leave the size open, so the first image is measured.
    size = sum(
      len(source) * sum(array.nbytes for array in source[np.array([0])].values()) for source in sources
    )
    if size <= IN_MEMORY_BYTES:
      sources = [load_into_memory(source, f"{self.name} {split}") for source in sources]
    if training and self.mirror:
      sources = [views.Mirrored(source) for source in sources]
    return Buckets(tuple(sources)) if self.buckets else sources[0]

  def fingerprint(self) -> dict[str, Any]:
    """Per split its name, count and a digest of its pictures and labels; and the names of the classes.

    Of a large split the digest is of FINGERPRINTED examples.  The bytes of the files would not do: TFDS
    writes other ones for the same examples.
    """
    builder = open_builder(find_dataset(self.name, self.data_dir))
    splits = {"train": self.train, "held_out": self.held_out}
    parts = {
      key: split_fingerprint(open_records(builder, split), self.caption) for key, split in splits.items()
    }
    return parts | {"classes": class_names(builder)}


def split_fingerprint(records: Any, caption: int) -> dict[str, Any]:
  """The number of examples and a digest of their encoded images and labels, and captions if they are read."""
  count, digest = len(records), hashlib.blake2b(digest_size=16)
  rows = sorted({round(row) for row in np.linspace(0, count - 1, min(count, FINGERPRINTED))})
  for start in range(0, len(rows), CHUNK):
    for example in records.__getitems__(rows[start : start + CHUNK]):
      image, label = example["image"], str(example.get("label")).encode()
      digest.update(b"%d %d " % (len(image), len(label)) + image + label)
      if caption:
        digest.update(b"%d " % len(example["caption"]) + example["caption"])
  return {"examples": count, "digest": digest.hexdigest()}


@dataclasses.dataclass(frozen=True)
class Records:
  """Examples decoded as they are read."""

  records: Any  # TFDS data source whose images come as encoded bytes
  data: ImageData

  def __len__(self) -> int:
    return len(self.records)

  def __getitem__(self, rows: np.ndarray) -> Batch:
    examples = self.records.__getitems__([int(row) for row in rows])
    batch = {
      "image": np.stack([decode_image(example["image"], self.data) for example in examples]),
      "label": read_labels(examples, self.data),
    }
    if self.data.caption:
      batch["caption"] = pad_captions([example["caption"] for example in examples], self.data.caption)
    return batch


def read_labels(examples: list[dict[str, Any]], data: ImageData) -> np.ndarray:
  """Labels int32 [n], -1 all of them if unconditional; UserError for one that is out of range."""
  labels = [example["label"] for example in examples] if data.classes else [-1] * len(examples)
  for label in labels:
    if not -1 <= label < max(data.classes, 1):
      raise UserError(
        f"label {label} in data set {data.name!r} with data.classes={data.classes}; "
        f"legal are -1 (unknown) to {data.classes - 1}"
      )
  return np.array(labels, np.int32)


def scan_records(records: Any, data: ImageData, split: str) -> tuple[list[Shape], np.ndarray]:
  """(height, width) and label of every record, read without decoding a pixel: a list [N] and int32 [N]."""
  sizes, labels = [], []
  with tqdm(
    desc=f"looking through {data.name} {split}",
    total=len(records),
    unit=" images",
    delay=1,
    leave=False,
    disable=None,
  ) as bar:
    for start in range(0, len(records), CHUNK):
      examples = records.__getitems__(list(range(start, min(start + CHUNK, len(records)))))
      sizes += [encoded_size(example["image"], data.name) for example in examples]
      labels.append(read_labels(examples, data))
      bar.update(len(examples))
  return sizes, np.concatenate(labels)


def encoded_size(encoded: bytes, name: str) -> Shape:
  """(height, width) from the header of an encoded image of data set `name`."""
  return open_encoded(encoded, name, lambda image: (image.height, image.width))


def open_encoded(encoded: bytes, name: str, form: Callable[[Image.Image], Any]) -> Any:
  """`form` of an encoded image, which decodes it or not; UserError if it cannot be read."""
  try:
    return opening.decode_picture(encoded, form, header_only=True)
  except opening.PictureError as error:
    raise UserError(
      f"data set {name!r} has an image that cannot be read ({error}); prepare it again"
    ) from error


def rows_by_shape(data: ImageData, sizes: list[Shape]) -> dict[Shape, np.ndarray]:
  """The rows int [n] of every shape of `data` that has images; UserError for images of another shape."""
  every = bucket_shapes(data)
  others = collections.Counter(size for size in sizes if size not in every)
  if others:
    shown = format_shapes(size for size, _ in others.most_common(5))
    more = f" and {len(others) - 5} other sizes" if len(others) > 5 else ""
    raise UserError(
      f"data set {data.name!r} has images of {shown}{more} "
      f"(height x width) but the experiment says {format_shapes(every)}; set data.buckets to hold them, "
      "or prepare it with these --buckets"
    )
  place = np.array([every.index(size) for size in sizes])
  return {shape: rows for k, shape in enumerate(every) if len(rows := np.flatnonzero(place == k))}


def decode_image(encoded: bytes, data: ImageData) -> np.ndarray:
  """An encoded image as uint8 [H, W, C]; UserError unless it has the height and width of `data`."""
  mode = "L" if data.channels == 1 else "RGB"

  def decode(image: Image.Image) -> np.ndarray:
    check_image_shape(data, (image.height, image.width, data.channels))  # before any memory is taken
    return np.asarray(image if image.mode == mode else transforms.to_8_bit_mode(image).convert(mode))

  return open_encoded(encoded, data.name, decode).reshape(data.height, data.width, data.channels)


def load_into_memory(source: Source, label: str) -> Arrays:
  """Everything in `source`, as arrays."""
  first = source[np.array([0])]
  arrays = {name: np.empty((len(source), *array.shape[1:]), array.dtype) for name, array in first.items()}
  with tqdm(
    desc=f"decoding {label}", total=len(source), unit=" images", delay=1, leave=False, disable=None
  ) as bar:
    for start in range(0, len(source), CHUNK):
      rows = np.arange(start, min(start + CHUNK, len(source)))
      for name, array in source[rows].items():
        arrays[name][rows] = array
      bar.update(len(rows))
  return Arrays(arrays)


def check_image(data: ImageData, builder: Any) -> None:
  """Raises a UserError unless there is an 8-bit image of the size of `data`, if the features state a size."""
  import tensorflow_datasets as tfds

  features, stored = dataset_features(builder), stored_shapes(builder)
  image = features.get("image")
  if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
    raise UserError(
      f"data set {data.name!r} has features {sorted(features)} and no 8-bit image called 'image'"
    )
  if data.buckets:
    check_image_shape(data, (None, None, image.shape[-1]))
  elif len(stored) > 1:
    (height, width), *further = stored
    raise UserError(
      f"data set {data.name!r} has images of {format_shapes(stored)} (height x width) "
      f"but the experiment says {format_shapes(bucket_shapes(data))}; "
      f"set data.height={height} data.width={width} 'data.buckets={tuple(further)}'"
    )
  else:
    check_image_shape(data, image.shape)


def check_image_shape(data: ImageData, shape: Iterable[int | None]) -> None:
  """Raises a UserError unless (height, width, channels), None for unknown, are those of `data`."""
  expected = {"height": data.height, "width": data.width, "channels": data.channels}
  wrong = {
    name: actual
    for (name, number), actual in zip(expected.items(), shape, strict=True)
    if actual not in (None, number)
  }
  if wrong:
    raise UserError(
      f"data set {data.name!r} has images of {', '.join(f'{k} {v}' for k, v in wrong.items())} but the "
      f"experiment says {', '.join(str(expected[k]) for k in wrong)}; set "
      + " ".join(f"data.{k}={v}" for k, v in wrong.items())
      + f" or prepare it with another --{'channels' if list(wrong) == ['channels'] else 'size'}"
    )


def check_class_count(data: ImageData, builder: Any) -> None:
  """Raises a UserError if data.classes > 0 and the data set has no labels, or another number of classes."""
  if not data.classes:
    return
  label = dataset_features(builder).get("label")
  if label is None or label.shape or not np.issubdtype(label.np_dtype, np.integer):
    raise UserError(f"data set {data.name!r} has no integer 'label'; set data.classes=0")
  names = class_names(builder)
  if names is not None and len(names) != data.classes:
    raise UserError(
      f"data set {data.name!r} has {len(names)} classes but the experiment says {data.classes}; "
      f"set data.classes={len(names)}"
    )


def check_captions(data: ImageData, builder: Any) -> None:
  """Raises a UserError if data.caption > 0 and the data set has no captions."""
  if data.caption and not has_captions(builder):
    raise UserError(
      f"data set {data.name!r} has features {sorted(dataset_features(builder))} and no text called 'caption' "
      f"for data.caption={data.caption}; set data.caption=0, or prepare it with captions"
    )
