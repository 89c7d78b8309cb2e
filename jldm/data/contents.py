"""What a source of pictures holds, before anything of it is decoded."""

from collections.abc import Callable, Iterable, Mapping
import functools
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image

from jldm.core.errors import UserError
from jldm.data.buckets import Shape
from jldm.data.transforms import Levels, Measured
from jldm.media.open import MAX_PIXELS

MAX_BYTES = 4 * 2**30  # of arrays that are read whole, from .npz and idx files
MAX_CLASSES = 10**6
MOST_NAMED = 3  # files that a note names
PACKAGED = ("clothes", "digits", "emoji", "photos")  # kinds that come with packages, and need no --name


class SourceOptions(NamedTuple):
  """Where pictures come from, and the limits of what is read."""

  path: Path | None = None
  size: Shape | None = None
  held_out: Path | None = None
  max_pixels: int = MAX_PIXELS
  max_bytes: int = MAX_BYTES
  captions: str = "auto"  # one of captions.WAYS


class Example(NamedTuple):
  load: Callable[..., Image.Image]  # decodes at every call: "L" or "RGB"
  label: int  # -1: unknown
  origin: str  # its name in errors
  measure: Callable[[], Measured] | None = None  # of files: decodes one to check it; None: measured by `load`
  levels: Levels | None = None  # black and white of a float picture, which `load` takes
  caption: str = ""  # empty: none


class Contents(NamedTuple):
  splits: dict[str, list[Example]]
  classes: list[str]  # names; empty if unlabelled
  left_out: Mapping[str, list[str]] = MappingProxyType({})  # reason -> files
  notes: tuple[str, ...] = ()  # lines about how the source was understood


def array_examples(
  images: Iterable[np.ndarray], labels: Iterable[int], origin: str, captions: Iterable[str] | None = None
) -> list[Example]:
  """Examples from uint8 images [N, H, W] or [N, H, W, 3], and perhaps as many captions."""
  pairs = list(zip(images, labels, strict=True))
  texts = [""] * len(pairs) if captions is None else captions
  return [
    Example(functools.partial(Image.fromarray, image), int(label), f"{origin} {number}", caption=text)
    for number, ((image, label), text) in enumerate(zip(pairs, texts, strict=True))
  ]


def numbered_classes(largest: int, source: Path) -> list[str]:
  """Names "0", "1", ... of the classes up to the label `largest`; UserError for more than can be listed."""
  if largest >= MAX_CLASSES:
    raise UserError(
      f"'{source}' has a label {largest}; expected labels below {MAX_CLASSES}, numbered from 0 without gaps"
    )
  return [str(number) for number in range(largest + 1)]


def require_source(path: Path | None, kind: str, expected: str, legal: Callable[[Path], bool]) -> Path:
  """`path` itself; UserError if it is missing or of another kind."""
  if path is None or not legal(path):
    wrong = "" if path is None else "is something else" if path.exists() else "does not exist"
    came = f"source '{path}' {wrong}" if path else "no source"
    raise UserError(f"{came}; prepare {kind} expects {expected}; give it with --source")
  return path


def refuse_source(source: SourceOptions, kind: str, packages: str) -> None:
  """Raises a UserError if a kind that comes with packages is given a source or a held-out folder."""
  if source.path or source.held_out:
    raise UserError(
      f"source='{source.path or source.held_out}' with {kind}, which come with {packages}; leave it out"
    )
