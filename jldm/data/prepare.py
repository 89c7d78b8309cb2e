"""Writes pictures from several kinds of source as a TFDS data set in array_record, without TensorFlow.

Each kind of source is a function in KINDS that lists its examples.  `prepare` then decodes them
twice, a few at a time: first to check every picture and find the common size, then to write.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import io
import os
from pathlib import Path
import re
import shutil
from typing import Any

import numpy as np
from PIL import Image

from jldm.core.errors import UserError
from jldm.core.files import replace_folder
from jldm.data import photos as photographs, transforms
from jldm.data.arrays import read_idx, read_npz
from jldm.data.buckets import Shape, format_shapes, nearest_shape
from jldm.data.builder import find_dataset
from jldm.data.captions import WAYS
from jldm.data.clothes import clothes_contents
from jldm.data.contents import (
  MAX_BYTES,
  Contents,
  Example,
  SourceOptions,
  array_examples,
  numbered_classes,
  refuse_source,
  require_source,
)
from jldm.data.emoji import emoji_contents
from jldm.data.examine import build_metadata, examine, map_in_threads
from jldm.data.folder import folder_contents
from jldm.media.open import MAX_PIXELS

IDX_SPLITS = {"train": "train", "test": "t10k"}  # split -> the prefix of its files
VERSION = "1.0.0"


def digits_contents(source: SourceOptions) -> Contents:
  """scikit-learn's 1,797 handwritten digits, 8x8 levels 0 ... 16, bicubic to 32x32 in floats."""
  refuse_source(source, "digits", "scikit-learn")
  from sklearn.datasets import load_digits  # a second to import, for this one alone

  data = load_digits()
  return Contents(
    {"train": array_examples([enlarge_digit(image) for image in data.images], data.target, "digit")},
    [str(name) for name in data.target_names],
  )


def enlarge_digit(image: np.ndarray) -> np.ndarray:
  """A digit [8, 8] of levels 0 ... 16 as uint8 [32, 32]."""
  large = Image.fromarray((image * (255 / 16)).astype(np.float32)).resize((32, 32), Image.Resampling.BICUBIC)
  return np.clip(np.rint(np.asarray(large)), 0, 255).astype(np.uint8)


def idx_contents(source: SourceOptions) -> Contents:
  """MNIST-style files in a folder, gzipped or not: train-images-idx3-ubyte, t10k-labels-idx1-ubyte, ..."""
  root = require_source(
    source.path, "idx", "the folder of train-images-idx3-ubyte and its like, gzipped or not", Path.is_dir
  )
  splits, count = {}, 0
  for split, stem in IDX_SPLITS.items():
    images, labels = (
      read_idx(find_idx_file(root, f"{stem}-{suffix}-ubyte"), rank, source.max_bytes)
      for suffix, rank in (("images-idx3", 3), ("labels-idx1", 1))
    )
    if len(images) != len(labels) or not images.size:
      raise UserError(
        f"'{root}' has {len(images)} images and {len(labels)} labels in {stem}; expected equally many"
      )
    splits[split] = array_examples(images, labels, f"{stem} image")
    count = max(count, int(labels.max()) + 1)
  return Contents(splits, [str(number) for number in range(count)])


def find_idx_file(root: Path, name: str) -> Path:
  """The file of that name, perhaps with .gz; UserError if there is none."""
  files = [path for path in (root / name, root / f"{name}.gz") if path.is_file()]
  if not files:
    raise UserError(f"'{root}' has no {name} or {name}.gz; expected images and labels of train and t10k")
  return files[0]


def npz_contents(source: SourceOptions) -> Contents:
  """An .npz with `images` uint8 [N, H, W] or [N, H, W, C], C 1 or 3, and perhaps `labels` int [N]."""
  path = require_source(source.path, "npz", "an .npz file with 'images' and perhaps 'labels'", Path.is_file)
  images, labels = read_npz(path, source.max_bytes)
  labels = np.full(len(images), -1) if labels is None else labels
  images = images[..., 0] if images.shape[3:] == (1,) else images
  return Contents(
    {"train": array_examples(images, labels, "image")}, numbered_classes(int(labels.max()), path)
  )


def photos_contents(source: SourceOptions) -> Contents:
  """Crops, by default 64x64, of the photographs of scikit-learn and scikit-image; each is a class."""
  refuse_source(source, "photos", "scikit-learn and scikit-image")
  cut = lambda split: [Example(*crop) for crop in photographs.random_crops(split, source.size or (64, 64))]
  return Contents({split: cut(split) for split in photographs.COUNTS}, photographs.photograph_names())


KINDS = {
  "clothes": clothes_contents,
  "digits": digits_contents,
  "emoji": emoji_contents,
  "folder": folder_contents,
  "idx": idx_contents,
  "npz": npz_contents,
  "photos": photos_contents,
}


def prepare(
  kind: str,
  source: str | Path | None,
  name: str,
  data_dir: str | Path = "data",
  size: Shape | None = None,
  pad: int = 0,
  channels: int | None = None,
  exist_ok: bool = False,
  buckets: tuple[Shape, ...] = (),
  held_out: str | Path | None = None,
  skip_damaged: bool = False,
  max_pixels: int = MAX_PIXELS,
  max_bytes: int = MAX_BYTES,
  captions: str = "auto",
) -> Path:
  """Writes data set `name` from a source of a kind in KINDS and returns its folder, data_dir/name/1.0.0.

  size: every picture is resized and cropped to it (height, width); without it all must have one size.
  buckets: further sizes; a picture takes the one of these and `size` with the nearest aspect ratio.
  pad: black pixels that are then added on each side.
  channels: 1 or 3; by default 1 if every picture is grey, else 3.
  exist_ok: whether an existing data set is left as it is, rather than refused.
  held_out: for folder: another folder, which becomes the split "test".
  skip_damaged: whether pictures that cannot be read are left out, rather than refused.
  max_pixels: of one picture.   max_bytes: of one array in an .npz or idx file, or of one metadata file.
  captions: for folder: in which way of captions.WAYS its pictures have captions.

  Features: image, png [H, W, C]; label int64, -1 unknown; if any example has one, caption, UTF-8, empty
  without one.  metadata.json has the names of the "classes", the "counts" of each split by class and, if
  there are any, all "shapes", the examples that are "unlabelled", how many "captions" of each split have
  how many bytes, what was "converted" or "left_out" and "notes".

  Raises: UserError; then nothing half-written is left.
  """
  check_request(kind, name, size, pad, channels, buckets)
  check_limits(kind, held_out, max_pixels, max_bytes)
  check_captions(kind, captions)
  target = Path(data_dir).expanduser() / name
  if os.path.exists(target):
    check_existing(target, exist_ok)
    return find_dataset(name, data_dir)
  check_data_dir(target.parent)
  options = SourceOptions(
    expand(source), size, expand(held_out), max_pixels=max_pixels, max_bytes=max_bytes, captions=captions
  )
  contents, examined = examine(KINDS[kind](options), size, buckets, skip_damaged)
  shapes, channels = (examined.size, *buckets), channels or examined.channels
  record = functools.partial(encode_example, shapes=shapes, pad=pad, mode="L" if channels == 1 else "RGB")
  padded = [(height + 2 * pad, width + 2 * pad) for height, width in shapes]
  try:
    with replace_folder(target) as temporary:
      write_dataset(temporary, name, contents, padded, channels, record, build_metadata(contents, examined))
  except OSError as error:
    raise UserError(
      f"data set {name!r} cannot be written to '{data_dir}' ({error.strerror or error})"
    ) from error
  return target / VERSION


def check_existing(target: Path, exist_ok: bool) -> None:
  """Raises a UserError for a folder that exists, unless it is a data set and may stay as it is."""
  if not any(target.glob("*/dataset_info.json")):
    raise UserError(f"'{target}' exists and is not a data set; choose another --name or --data-dir")
  if not exist_ok:
    raise UserError(
      f"data set {target.name!r} is already in '{target.parent}'; choose another --name, delete '{target}', "
      "or keep it with --if-missing"
    )


def check_request(
  kind: str, name: str, size: Shape | None, pad: int, channels: int | None, buckets: tuple[Shape, ...]
) -> None:
  """Raises a UserError for options that are not legal."""
  if kind not in KINDS:
    raise UserError(f"kind={kind!r}; expected one of {list(KINDS)}")
  if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
    raise UserError(
      f"name={name!r}; expected letters, digits and underscores after a letter; choose another --name"
    )
  if size is not None and min(size) < 1:
    raise UserError(f"size={size[0]}x{size[1]}; expected HEIGHTxWIDTH of at least 1x1")
  if buckets and (size is None or min(map(min, buckets)) < 1 or len({size, *buckets}) <= len(buckets)):
    came = f"size={format_shapes([size])}" if size else "no size"
    raise UserError(
      f"buckets={format_shapes(buckets)} with {came}; expected one --size HEIGHTxWIDTH and --buckets that "
      "differ from it and each other, as in --size 64x64 --buckets 48x80,80x48"
    )
  if pad < 0:
    raise UserError(f"pad={pad}; expected 0 or more pixels")
  if channels not in (None, 1, 3):
    raise UserError(f"channels={channels}; expected 1 (grey) or 3 (RGB)")


def check_limits(kind: str, held_out: Any, max_pixels: int, max_bytes: int) -> None:
  """Raises a UserError for limits below 1, or a held-out folder of a kind that has none."""
  for name, value in (("max_pixels", max_pixels), ("max_bytes", max_bytes)):
    if value < 1:
      raise UserError(f"{name}={value}; expected at least 1")
  if held_out is not None and kind != "folder":
    raise UserError(f"held_out='{held_out}' with {kind}; expected none: only folder takes --held-out")


def check_captions(kind: str, captions: str) -> None:
  """Raises a UserError for an unknown way of captions, or one of a kind that has no choice of them."""
  if captions not in WAYS:
    raise UserError(f"captions={captions!r}; expected one of {list(WAYS)}")
  if captions != "auto" and kind != "folder":
    raise UserError(f"captions={captions!r} with {kind}; expected 'auto': only folder takes --captions")


def expand(path: str | Path | None) -> Path | None:
  return Path(path).expanduser() if path else None


def check_data_dir(directory: Path) -> None:
  """Raises a UserError if nothing can be written to `directory`, which need not exist yet."""
  nearest = next(
    path for path in (directory.absolute(), *directory.absolute().parents) if os.path.exists(path)
  )
  if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
    raise UserError(f"data_dir='{directory}' cannot be written to; choose another --data-dir")


def encode_example(example: Example, shapes: tuple[Shape, ...], pad: int, mode: str) -> dict[str, Any]:
  """An example as it is stored: a PNG of the nearest of `shapes` and padding in `mode`, label, caption."""
  image = example.load(example.levels) if example.levels else example.load()
  size = nearest_shape((image.height, image.width), shapes)
  image = image if (image.height, image.width) == size else transforms.resize_to_cover(image, size)
  file = io.BytesIO()
  transforms.pad_black(image.convert(mode), pad).save(file, "png")
  return {"image": file.getvalue(), "label": example.label, "caption": example.caption.encode()}


def write_dataset(
  folder: Path,
  name: str,
  contents: Contents,
  shapes: list[Shape],
  channels: int,
  record: Callable[[Example], dict[str, Any]],
  description: dict[str, Any],
) -> None:
  """Writes folder/1.0.0, a TFDS data set called `name` of images of `shapes`."""
  import tensorflow_datasets as tfds  # half a second that printing help can do without

  shape = shapes[0] if len(shapes) == 1 else (None, None)
  metadata = description | ({"shapes": shapes} if len(shapes) > 1 else {})
  captioned = "captions" in description

  class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
      features = {
        "image": tfds.features.Image(shape=(*shape, channels), encoding_format="png"),
        "label": tfds.features.Scalar(np.int64),
      } | ({"caption": tfds.features.Text()} if captioned else {})
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features), metadata=tfds.core.MetadataDict(metadata)
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
      return {split: self._generate_examples(split) for split in contents.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
      for number, each in enumerate(map_in_threads(record, contents.splits[split], f"writing {split}")):
        yield number, {name: each[name] for name in self.info.features}

  Prepared.name = name
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # it announces downloads, of which there are none
    builder = Prepared(data_dir=folder / "work")
    builder.download_and_prepare(file_format="array_record")
  os.rename(builder.data_dir, folder / VERSION)
  shutil.rmtree(folder / "work")
