"""Prepared TFDS data sets on disk: finds, opens and describes them."""

from collections.abc import Iterator
import itertools
import json
from pathlib import Path
import re
import shlex
from typing import Any

from jldm.core.errors import UserError
from jldm.core.words import count_text
from jldm.data.buckets import Shape, format_shapes
from jldm.data.contents import PACKAGED

MOST_CLASSES = 40  # of a description
MOST_LOOKED = 100  # examples of a split that are read to show a caption
MOST_SHOWN = 200  # characters of that


def find_dataset(name: str, data_dir: str | Path) -> Path:
  """The folder of the newest version of a data set; if there is none, a UserError says how to make one."""
  root = Path(data_dir).expanduser() / name
  folders = version_folders(root)
  if not folders:
    raise UserError(missing_dataset_message(name, data_dir))
  configs = sorted({str(folder.parent.relative_to(root.parent)) for folder in folders})
  if len(configs) > 1:
    raise UserError(f"data set {name!r} in '{data_dir}' has several configurations; name one of {configs}")
  return max(folders, key=lambda folder: [int(number) for number in folder.name.split(".")])


def version_folders(root: Path) -> list[Path]:
  """The folders in `root`, or one below, that hold a version of a data set."""
  return [
    info.parent
    for pattern in ("*", "*/*")
    for info in root.glob(f"{pattern}/dataset_info.json")
    if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
  ]


def is_dataset(path: Path) -> bool:
  """Whether `path` is data_dir/name of a prepared data set."""
  return path.is_dir() and bool(version_folders(path))


def missing_dataset_message(name: str, data_dir: str | Path) -> str:
  """The error text for a missing data set: how to make it."""
  where, it = shlex.quote(str(data_dir)), shlex.quote(name)
  ways = (
    f"jldm prepare {name} --data-dir {where}"
    if name in PACKAGED
    else (
      f"jldm prepare {{folder,idx,npz}} --name {it} --source SOURCE --data-dir {where}; "
      "or, for a stock TFDS set: "
      f"pip install 'jldm[tf]' and tfds build {it} --data_dir {where} --file_format array_record"
    )
  )
  return f"data set {name!r} is not in '{data_dir}'; make it with: {ways}"


def open_builder(folder: Path) -> Any:
  """A TFDS builder that reads the prepared `folder`; UserError unless it is stored as array_record."""
  try:
    info = json.loads((folder / "dataset_info.json").read_bytes())
    formats = [
      str(name) for name in (info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", ()))
    ]
  except (ValueError, AttributeError, TypeError, RecursionError) as error:
    raise UserError(
      f"data set '{folder}' has a dataset_info.json that cannot be read; build it again"
    ) from error
  if "array_record" not in formats:
    raise UserError(
      f"data set '{folder}' is stored as {formats[0]}, jldm reads array_record; build it again with "
      "--file_format array_record and another --data_dir, or convert it: pip install 'jldm[tf]' and tfds "
      f"convert_format --dataset_version_dir={shlex.quote(str(folder))} --out_file_format=array_record"
    )
  import tensorflow_datasets as tfds  # half a second that a missing data set should not wait for

  return tfds.builder_from_directory(folder, file_format="array_record")


def open_records(builder: Any, split: str) -> Any:
  """The TFDS data source of a split, images left encoded; UserError for a split that is unknown or empty."""
  import tensorflow_datasets as tfds

  try:
    return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
  except ValueError as error:  # TFDS has this class for every wrong split, with several lines of text
    counts = {name: info.num_examples for name, info in builder.info.splits.items()}
    raise UserError(
      f"split {split!r} of data set {builder.info.name!r} is unknown or empty; "
      f"there are {counts} and slices such as 'train[:95%]'"
    ) from error


def dataset_features(builder: Any) -> dict[str, Any]:
  """The features by name, as a dict: TFDS has a mapping without `get`."""
  return {name: builder.info.features[name] for name in builder.info.features}


def class_names(builder: Any) -> list[str] | None:
  """The names of the classes, [] if unlabelled; None if the data set does not state them."""
  label = dataset_features(builder).get("label")
  names = getattr(label, "names", None) or (builder.info.metadata or {}).get("classes")
  return names if isinstance(names, list) else None


def has_captions(builder: Any) -> bool:
  """Whether the examples have a text called `caption`."""
  import tensorflow_datasets as tfds

  return isinstance(dataset_features(builder).get("caption"), tfds.features.Text)


def caption_lengths(builder: Any) -> dict[str, dict[int, int]]:
  """By split, how many captions have how many bytes; {} if a data set does not state it."""
  every = (builder.info.metadata or {}).get("captions", {})
  return {
    split: {int(length): count for length, count in lengths.items()} for split, lengths in every.items()
  }


def stored_shapes(builder: Any) -> list[Shape]:
  """The shapes that a data set was prepared with; [] if it does not state them."""
  return [tuple(shape) for shape in (builder.info.metadata or {}).get("shapes", ())]


def describe_dataset(folder: Path) -> str:
  """One line about a prepared data set: images in each split, size or sizes, classes."""
  builder = open_builder(folder)
  splits = ", ".join(
    f"{name} {count_text(info.num_examples, 'image')}" for name, info in builder.info.splits.items()
  )
  height, width, channels = dataset_features(builder)["image"].shape
  stored, names = stored_shapes(builder), class_names(builder) or []
  size = f"{format_shapes(stored)} (height x width)" if stored else f"height {height}, width {width}"
  classes = count_text(len(names), "class", "classes") if names else "unlabelled"
  return f"{folder}: {splits}; {size}, channels {channels}; {classes}"


def describe_contents(folder: Path) -> Iterator[str]:
  """Further lines: classes by name and count, what was converted and left out, as far as a data set tells."""
  builder = open_builder(folder)
  metadata, names = builder.info.metadata or {}, class_names(builder) or []
  counts, unlabelled = metadata.get("counts", {}), metadata.get("unlabelled", {})
  width = max((len(name) for name in names[:MOST_CLASSES]), default=0)
  for label, name in enumerate(names[:MOST_CLASSES]):
    shares = ", ".join(f"{split} {each[label]}" for split, each in counts.items())
    yield f"  label {label:{len(str(len(names) - 1))}}  {name:{width}}  {shares}".rstrip()
  if len(names) > MOST_CLASSES:
    yield f"  and {len(names) - MOST_CLASSES} more classes, up to {names[-1]!r}"
  yield from (f"  unlabelled: {split} {count}" for split, count in unlabelled.items())
  yield from describe_captions(builder)
  for key, title in (("converted", "converted"), ("left_out", "left out")):
    for reason, files in metadata.get(key, {}).items():
      more = ", ..." if files["count"] > len(files["first"]) else ""
      yield f"  {title}: {files['count']} {reason} ({', '.join(files['first'])}{more})"
  yield from (f"  {note}" for note in metadata.get("notes", ()))


def describe_captions(builder: Any) -> Iterator[str]:
  """Lines about captions: how many of each split, the longest, and one of them."""
  if not has_captions(builder):
    return
  splits, lengths = builder.info.splits, caption_lengths(builder)
  if lengths:
    counts = ", ".join(
      f"{split} {sum(each.values())} of {splits[split].num_examples}" for split, each in lengths.items()
    )
    longest = max(length for each in lengths.values() for length in each)
    yield f"  captions: {counts}; the longest fits with data.caption={longest}"
  for split in splits:
    for example in itertools.islice(open_records(builder, split), MOST_LOOKED):
      if example["caption"]:
        yield f"  for example: {example['caption'].decode('utf-8', 'replace')[:MOST_SHOWN]}"
        return


def describe_cut(name: str, builder: Any, length: int) -> Iterator[str]:
  """A line about captions of more than `length` bytes, if there are any."""
  lengths = caption_lengths(builder)
  cut = {
    split: sum(count for size, count in each.items() if size > length) for split, each in lengths.items()
  }
  if any(cut.values()):
    counts = ", ".join(f"{split} {count} of {sum(lengths[split].values())}" for split, count in cut.items())
    longest = max(size for each in lengths.values() for size in each)
    yield (
      f"captions of {name!r} are cut to data.caption={length} bytes: {counts}; the longest fits with "
      f"data.caption={longest}"
    )
