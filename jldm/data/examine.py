"""The first pass over all pictures of a data set: what is sound, how large it is, and what is converted."""

import collections
from collections.abc import Callable, Iterator
import os
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from jldm.core.errors import UserError
from jldm.data import transforms
from jldm.data.buckets import Shape, nearest_shape
from jldm.data.contents import MOST_NAMED, Contents, Example
from jldm.data.transforms import Levels, Measured

ADVICE = "; replace or remove it"  # the end of what `transforms.read_picture` says of one
MOST_DAMAGED = 5  # damaged pictures that an error names


class Examined(NamedTuple):
  """What the first pass over all pictures learns."""

  size: Shape
  channels: int
  conversions: dict[str, list[str]]  # what is done -> to which pictures


def examine(
  contents: Contents, size: Shape | None, buckets: tuple[Shape, ...], skip_damaged: bool
) -> tuple[Contents, Examined]:
  """Decodes everything once -> the examples that are sound, and what it learned of them.

  Raises:
    UserError: pictures that cannot be read, unless they are skipped; pictures of different sizes
      if no `size` is given; float pictures that no range of levels fits.
  """
  examples = [example for split in contents.splits.values() for example in split]
  sound, damaged = {}, []
  for example, measured in zip(examples, map_in_threads(measure_example, examples, "checking"), strict=True):
    if isinstance(measured, Measured):
      sound[example.origin] = (example, measured)
    else:
      damaged.append((example.origin, str(measured)))
  if damaged and (not skip_damaged or not sound):
    raise UserError(describe_damaged(damaged))
  levels = transforms.common_levels({origin: measured.levels for origin, (_, measured) in sound.items()})
  splits = {
    split: [
      example._replace(levels=levels if sound[example.origin][1].levels else None)
      for example in group
      if example.origin in sound
    ]
    for split, group in contents.splits.items()
  }
  if empty := [split for split, group in splits.items() if not group]:
    raise UserError(f"{describe_damaged(damaged)}: without them {empty[0]!r} has no picture")
  reasons = [reason.removesuffix(ADVICE) for _, reason in damaged]
  left_out = contents.left_out | ({"damaged": reasons} if damaged else {})
  size = size or common_size(sound)
  grey = all(measured.grey for _, measured in sound.values())
  examined = Examined(size, 1 if grey else 3, list_conversions(sound, (size, *buckets), levels))
  return contents._replace(splits=splits, left_out=left_out), examined


def measure_example(example: Example) -> Measured | UserError:
  """What is known of an example, or what is wrong with it."""
  try:
    if example.measure:
      return example.measure()
    image = example.load()
    return Measured(image.height, image.width, image.mode == "L", None, ())
  except UserError as error:
    return error


def describe_damaged(damaged: list[tuple[str, str]]) -> str:
  """One line about pictures that cannot be read; each reason names its file."""
  if len(damaged) == 1:
    return f"{damaged[0][1]}, or leave it out with --skip-damaged"
  reasons = [reason.removesuffix(ADVICE) for _, reason in damaged[:MOST_DAMAGED]]
  more = f"; and {len(damaged) - MOST_DAMAGED} more" if len(damaged) > MOST_DAMAGED else ""
  return (
    f"{len(damaged)} damaged pictures: {'; '.join(reasons)}{more}; "
    "replace or remove them, or leave them out with --skip-damaged"
  )


def common_size(sound: dict[str, tuple[Example, Measured]]) -> Shape:
  """The (height, width) of all pictures; UserError if two differ."""
  (first, (_, one)), *others = sound.items()
  for origin, (_, other) in others:
    if (other.height, other.width) != (one.height, one.width):
      raise UserError(
        f"'{first}' is {one.height}x{one.width} and '{origin}' {other.height}x{other.width} "
        f"(height x width); give one size for all, such as --size {one.height}x{one.width}"
      )
  return one.height, one.width


def list_conversions(
  sound: dict[str, tuple[Example, Measured]], shapes: tuple[Shape, ...], levels: Levels | None
) -> dict[str, list[str]]:
  """What happens to pictures before they are stored -> those to which it happens."""
  conversions: dict[str, list[str]] = {}
  for origin, (_, measured) in sound.items():
    height, width = nearest_shape((measured.height, measured.width), shapes)
    small = (f"enlarged to {height}x{width}",) if height > measured.height or width > measured.width else ()
    for note in (*measured.notes, *small):
      conversions.setdefault(note, []).append(origin)
  if levels:
    name = "float levels to 8 bits"
    conversions[f"{name}, {levels[0]:g} black and {levels[1]:g} white"] = conversions.pop(name)
  return conversions


def build_metadata(contents: Contents, examined: Examined) -> dict[str, Any]:
  """What metadata.json says besides the shapes; see `prepare`."""
  labels = {split: [example.label for example in group] for split, group in contents.splits.items()}
  counts = {
    split: [int(n) for n in np.bincount([k for k in group if k >= 0], minlength=len(contents.classes))]
    for split, group in labels.items()
  }
  unlabelled = {split: group.count(-1) for split, group in labels.items() if contents.classes and -1 in group}
  lengths = {split: caption_lengths(group) for split, group in contents.splits.items()}
  some = lambda files: {"count": len(files), "first": files[:MOST_NAMED]}
  optional = {
    "unlabelled": unlabelled,
    "captions": lengths if any(lengths.values()) else {},
    "converted": {note: some(files) for note, files in examined.conversions.items()},
    "left_out": {reason: some(files) for reason, files in contents.left_out.items()},
    "notes": list(contents.notes),
  }
  return {"classes": contents.classes, "counts": counts} | {key: v for key, v in optional.items() if v}


def caption_lengths(examples: list[Example]) -> dict[str, int]:
  """How many captions have how many bytes, as JSON has it: {"12": 3}."""
  lengths = collections.Counter(len(each.caption.encode()) for each in examples if each.caption)
  return {str(length): lengths[length] for length in sorted(lengths)}


def map_in_threads(function: Callable[[Example], Any], examples: list[Example], label: str) -> Iterator[Any]:
  """`function` of every example in order, computed by threads a few ahead, with a progress bar."""
  import grain  # brings jax along, which printing help can do without

  threads = os.cpu_count() or 1
  steps = grain.MapDataset.range(len(examples)).map(lambda number: function(examples[number]))
  results = steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads))
  return iter(tqdm(results, desc=label, total=len(examples), unit=" images", disable=None))
