"""Writes pictures from several kinds of source as a TFDS data set in array_record, without TensorFlow.

Each kind of source is a function in KINDS that lists its examples.  `prepare` then decodes them
twice, a few at a time: first to check every picture and find the common size, then to write.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import functools
import gzip
import io
import math
import os
from pathlib import Path
import re
import shutil
from typing import Any, NamedTuple
import zipfile
import zlib

import numpy as np
from PIL import Image
from tqdm import tqdm

from jldm.core.errors import UserError
from jldm.core.files import replace_folder
from jldm.data import photos as photographs, tfds as prepared, transforms
from jldm.data.buckets import Shape, format_shapes, nearest_shape

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")
IDX_SPLITS = {"train": "train", "test": "t10k"}  # split -> the prefix of its files
VERSION = "1.0.0"


class Example(NamedTuple):
  load: Callable[[], Image.Image]  # decodes at every call: "L" or "RGB"
  label: int  # -1: unknown
  origin: str  # its name in errors


class Contents(NamedTuple):
  splits: dict[str, list[Example]]
  classes: list[str]  # names; empty if unlabelled


def digits_contents(source: Path | None, size: Shape | None = None) -> Contents:
  """scikit-learn's 1,797 handwritten digits, 8x8 levels 0 ... 16, bicubic to 32x32 in floats."""
  if source:
    raise UserError(f"source='{source}' with digits, which come with scikit-learn; leave it out")
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


def array_examples(images: Iterable[np.ndarray], labels: Iterable[int], origin: str) -> list[Example]:
  """Examples from uint8 images [N, H, W] or [N, H, W, 3]."""
  return [
    Example(functools.partial(Image.fromarray, image), int(label), f"{origin} {number}")
    for number, (image, label) in enumerate(zip(images, labels, strict=True))
  ]


def folder_contents(source: Path | None, size: Shape | None = None) -> Contents:
  """Picture files: one sub-folder per class, sorted by name; or all in one folder, unlabelled."""
  source = require_source(
    source, "folder", "a folder of pictures, or of one sub-folder per class", Path.is_dir
  )
  classes = sorted(path.name for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
  flat = picture_files(source, "*")
  if flat and classes:
    raise UserError(
      f"'{source}' has pictures ('{flat[0].name}') next to sub-folders ('{classes[0]}'); "
      "expected pictures alone (unlabelled) or sub-folders alone (one per class); move one of them away"
    )
  groups = [picture_files(source / name, "**/*") for name in classes]
  for name, group in zip(classes, groups, strict=True):
    if not group:
      raise UserError(f"'{source / name}' holds no pictures ({', '.join(EXTENSIONS)}); fill or remove it")
  if not flat and not classes:
    raise UserError(
      f"'{source}' holds no pictures; expected {', '.join(EXTENSIONS)}, in it or in sub-folders"
    )
  labelled = [(path, -1) for path in flat] + [
    (path, label) for label, group in enumerate(groups) for path in group
  ]
  examples = [
    Example(functools.partial(transforms.read_picture, path), label, str(path)) for path, label in labelled
  ]
  return Contents({"train": examples}, classes)


def picture_files(root: Path, pattern: str) -> list[Path]:
  """Picture files by extension, sorted, without hidden ones such as the ._* of macOS."""
  return sorted(
    path
    for path in root.glob(pattern)
    if path.suffix[1:].lower() in EXTENSIONS
    and path.is_file()
    and not any(part.startswith(".") for part in path.relative_to(root).parts)
  )


def idx_contents(source: Path | None, size: Shape | None = None) -> Contents:
  """MNIST-style files in a folder, gzipped or not: train-images-idx3-ubyte, t10k-labels-idx1-ubyte, ..."""
  source = require_source(
    source, "idx", "the folder of train-images-idx3-ubyte and its like, gzipped or not", Path.is_dir
  )
  splits, count = {}, 0
  for split, stem in IDX_SPLITS.items():
    images, labels = (
      read_idx(find_idx_file(source, f"{stem}-{suffix}-ubyte"), rank)
      for suffix, rank in (("images-idx3", 3), ("labels-idx1", 1))
    )
    if len(images) != len(labels) or not images.size:
      raise UserError(
        f"'{source}' has {len(images)} images and {len(labels)} labels in {stem}; expected equally many"
      )
    splits[split] = array_examples(images, labels, f"{stem} image")
    count = max(count, int(labels.max()) + 1)
  return Contents(splits, [str(number) for number in range(count)])


def find_idx_file(source: Path, name: str) -> Path:
  """The file of that name, perhaps with .gz; UserError if there is none."""
  files = [path for path in (source / name, source / f"{name}.gz") if path.is_file()]
  if not files:
    raise UserError(f"'{source}' has no {name} or {name}.gz; expected images and labels of train and t10k")
  return files[0]


def read_idx(path: Path, rank: int) -> np.ndarray:
  """An IDX file, gzipped or not, as uint8 with `rank` axes; UserError if its header or length is wrong."""
  try:
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"'{path}' cannot be read ({error}); download it again") from error
  magic, start = bytes([0, 0, 8, rank]), 4 + 4 * rank  # 8: unsigned bytes; then the sizes, big-endian
  if data[:4] != magic or len(data) < start:
    raise UserError(
      f"'{path}' begins with {data[:4].hex() or 'nothing'}; expected {magic.hex()} (IDX, {rank} axes)"
    )
  shape = [int(n) for n in np.frombuffer(data, ">u4", rank, 4)]
  came, expected = len(data) - start, math.prod(shape)
  if came != expected:
    raise UserError(
      f"'{path}' has {came} bytes of data; expected {expected} for shape {shape}; download it again"
    )
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def npz_contents(source: Path | None, size: Shape | None = None) -> Contents:
  """An .npz with `images` uint8 [N, H, W] or [N, H, W, C], C 1 or 3, and perhaps `labels` int [N]."""
  source = require_source(source, "npz", "an .npz file with 'images' and perhaps 'labels'", Path.is_file)
  try:
    with np.load(source, allow_pickle=False) as file:
      images, labels = file["images"], file.get("labels")
  except KeyError as error:
    raise UserError(f"'{source}' has no 'images'; expected uint8 [N, H, W] or [N, H, W, C]") from error
  except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(
      f"'{source}' cannot be read as .npz without pickle; expected arrays of numbers"
    ) from error
  shape = images.shape
  if (
    images.dtype != np.uint8
    or len(shape) not in (3, 4)
    or shape[3:] not in ((), (1,), (3,))
    or not images.size
  ):
    raise UserError(
      f"'{source}' has images {images.dtype} {list(shape)}; "
      "expected uint8 [N, H, W] or [N, H, W, C], C 1 or 3"
    )
  if labels is None:
    labels = np.full(len(images), -1)
  if labels.dtype.kind not in "iu" or labels.shape != shape[:1] or labels.min() < -1:
    raise UserError(
      f"'{source}' has labels {labels.dtype} {list(labels.shape)}; "
      f"expected integers [{shape[0]}] from -1 (unknown) up"
    )
  images = images[..., 0] if shape[3:] == (1,) else images
  return Contents(
    {"train": array_examples(images, labels, "image")},
    [str(number) for number in range(int(labels.max()) + 1)],
  )


def require_source(source: Path | None, kind: str, expected: str, legal: Callable[[Path], bool]) -> Path:
  """`source` itself; UserError if it is missing or of another kind."""
  if source is None or not legal(source):
    wrong = "" if source is None else "is something else" if source.exists() else "does not exist"
    came = f"source '{source}' {wrong}" if source else "no source"
    raise UserError(f"{came}; prepare {kind} expects {expected}; give it with --source")
  return source


def photos_contents(source: Path | None, size: Shape | None = None) -> Contents:
  """Crops, by default 64x64, of the photographs of scikit-learn and scikit-image; each is a class."""
  if source:
    raise UserError(
      f"source='{source}' with photos, which come with scikit-learn and scikit-image; leave it out"
    )
  cut = lambda split: [Example(*crop) for crop in photographs.random_crops(split, size or (64, 64))]
  return Contents({split: cut(split) for split in photographs.COUNTS}, photographs.photograph_names())


KINDS = {
  "digits": digits_contents,
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
) -> Path:
  """Writes data set `name` from a source of a kind in KINDS and returns its folder, data_dir/name/1.0.0.

  size: every picture is resized and cropped to it (height, width); without it all must have one size.
  buckets: further sizes; a picture takes the one of these and `size` with the nearest aspect ratio.
  pad: black pixels that are then added on each side.
  channels: 1 or 3; by default 1 if every picture is grey, else 3.
  exist_ok: whether an existing data set is left as it is, rather than refused.

  Features: image, png [H, W, C]; label int64, -1 unknown; metadata.json has the names of the
  "classes" and, with `buckets`, all "shapes".

  Raises: UserError; then nothing half-written is left.
  """
  check_request(kind, name, size, pad, channels, buckets)
  target = Path(data_dir).expanduser() / name
  if os.path.exists(target):
    if not any(target.glob("*/dataset_info.json")):
      raise UserError(f"'{target}' exists and is not a data set; choose another --name or --data-dir")
    if exist_ok:
      return prepared.find_dataset(name, data_dir)
    raise UserError(
      f"data set {name!r} is already in '{data_dir}'; choose another --name, delete '{target}', "
      "or keep it with --if-missing"
    )
  check_data_dir(target.parent)
  contents = KINDS[kind](Path(source).expanduser() if source else None, size)
  size, common_channels = measure_examples(
    [example for split in contents.splits.values() for example in split], size
  )
  channels = channels or common_channels
  record = functools.partial(
    encode_example, shapes=(size, *buckets), pad=pad, mode="L" if channels == 1 else "RGB"
  )
  padded = [(height + 2 * pad, width + 2 * pad) for height, width in (size, *buckets)]
  try:
    with replace_folder(target) as temporary:
      write_dataset(temporary, name, contents, padded, channels, record)
  except OSError as error:
    raise UserError(
      f"data set {name!r} cannot be written to '{data_dir}' ({error.strerror or error})"
    ) from error
  return target / VERSION


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


def check_data_dir(directory: Path) -> None:
  """Raises a UserError if nothing can be written to `directory`, which need not exist yet."""
  nearest = next(
    path for path in (directory.absolute(), *directory.absolute().parents) if os.path.exists(path)
  )
  if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
    raise UserError(f"data_dir='{directory}' cannot be written to; choose another --data-dir")


def measure_examples(examples: list[Example], size: Shape | None) -> tuple[Shape, int]:
  """Decodes everything once -> the common (height, width), or `size`; and channels, 1 if all are grey.

  Raises: UserError for a picture that cannot be read, or for two of different size if no `size` is given.
  """
  kinds = map_in_threads(measure_example, examples, "checking")
  first, grey = None, True
  for example, (height, width, mode) in zip(examples, kinds, strict=True):
    first = first or (height, width)
    grey = grey and mode == "L"
    if size is None and (height, width) != first:
      raise UserError(
        f"'{examples[0].origin}' is {first[0]}x{first[1]} and '{example.origin}' {height}x{width} "
        f"(height x width); give one size for all, such as --size {first[0]}x{first[1]}"
      )
  return size or first, 1 if grey else 3


def measure_example(example: Example) -> tuple[int, int, str]:
  """Height, width and mode of an example."""
  image = example.load()
  return image.height, image.width, image.mode


def encode_example(example: Example, shapes: tuple[Shape, ...], pad: int, mode: str) -> dict[str, Any]:
  """An example as it is stored: a PNG of the nearest of `shapes` and padding in `mode`, and the label."""
  image = example.load()
  size = nearest_shape((image.height, image.width), shapes)
  image = image if (image.height, image.width) == size else transforms.resize_to_cover(image, size)
  file = io.BytesIO()
  transforms.pad_black(image.convert(mode), pad).save(file, "png")
  return {"image": file.getvalue(), "label": example.label}


def map_in_threads(function: Callable[[Example], Any], examples: list[Example], label: str) -> Iterator[Any]:
  """`function` of every example in order, computed by threads a few ahead, with a progress bar."""
  import grain  # brings jax along, which printing help can do without

  threads = os.cpu_count() or 1
  steps = grain.MapDataset.range(len(examples)).map(lambda number: function(examples[number]))
  results = steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
  return iter(tqdm(results, desc=label, total=len(examples), unit=" images", disable=None))


def write_dataset(
  folder: Path,
  name: str,
  contents: Contents,
  shapes: list[Shape],
  channels: int,
  record: Callable[[Example], dict[str, Any]],
) -> None:
  """Writes folder/1.0.0, a TFDS data set called `name` of images of `shapes`."""
  import tensorflow_datasets as tfds  # half a second that printing help can do without

  shape = shapes[0] if len(shapes) == 1 else (None, None)
  metadata = {"classes": contents.classes} | ({"shapes": shapes} if len(shapes) > 1 else {})

  class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
      features = {
        "image": tfds.features.Image(shape=(*shape, channels), encoding_format="png"),
        "label": tfds.features.Scalar(np.int64),
      }
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features), metadata=tfds.core.MetadataDict(metadata)
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
      return {split: self._generate_examples(split) for split in contents.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
      return enumerate(map_in_threads(record, contents.splits[split], f"writing {split}"))

  Prepared.name = name
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # it announces downloads, of which there are none
    builder = Prepared(data_dir=folder / "work")
    builder.download_and_prepare(file_format="array_record")
  os.rename(builder.data_dir, folder / VERSION)
  shutil.rmtree(folder / "work")
