"""Two coloured clothes side by side, with a caption: "a red bag right of a blue t-shirt".

The clothes are pictures of Fashion-MNIST (Xiao et al. 2017, 1708.07747; MIT licence), each tinted and put
into the middle of a half of a black canvas of 32x64.  Either is named first, so the order of the words says
nothing about the sides.  Every thing has one colour that it never has in training: those pairs make the split
"unseen", whose captions are held-out combinations of known words.
"""

from collections.abc import Iterator
import functools
from pathlib import Path
import re
from typing import NamedTuple
import zlib

import numpy as np
from PIL import Image

from jldm.core.errors import UserError
from jldm.data.arrays import read_idx
from jldm.data.contents import Contents, Example, SourceOptions

COLOURS = {  # name -> red, green, blue; 60 degrees of hue apart
  "red": (255, 0, 0),
  "yellow": (255, 255, 0),
  "green": (0, 255, 0),
  "cyan": (0, 255, 255),
  "blue": (0, 0, 255),
  "pink": (255, 0, 255),
}
THINGS = (  # Fashion-MNIST's classes, in its order
  "t-shirt",
  "trousers",
  "pullover",
  "dress",
  "coat",
  "sandal",
  "shirt",
  "sneaker",
  "bag",
  "boot",
)
COUNTS = {"train": 12_000, "test": 2_000, "unseen": 2_000}  # pictures of a split
PACKAGE = "Debian's dataset-fashion-mnist"
FOLDER = Path("/usr/share/datasets/fashion-mnist")  # where that has it
FILES = {"train": "train", "test": "t10k", "unseen": "t10k"}  # split -> the prefix of its files
SIDE, MARGIN = 28, 2  # of a thing, and of the canvas around it
SHAPE = (SIDE + 2 * MARGIN, 2 * (SIDE + 2 * MARGIN), 3)  # of a picture
NOTE = "clothes of Fashion-MNIST (Zalando SE, MIT licence)"
PLURAL = "trousers"  # without an article
CAPTION = re.compile(r"(?:a )?(\S+) (\S+) (left|right) of (?:a )?(\S+) (\S+)")

Thing = tuple[int, int]  # of COLOURS and of THINGS


class Scene(NamedTuple):
  """What stands on the left and on the right."""

  left: Thing
  right: Thing


def is_unseen(colour: int, thing: int) -> bool:
  """Whether no training picture has a thing of that colour."""
  return colour == thing % len(COLOURS)


def name_thing(colour: int, thing: int) -> str:
  """ "a red bag", "blue trousers"."""
  article = "" if THINGS[thing] == PLURAL else "a "
  return f"{article}{list(COLOURS)[colour]} {THINGS[thing]}"


def write_caption(scene: Scene, left_first: bool) -> str:
  """The caption that names the left or the right thing first."""
  left, right = (name_thing(*each) for each in scene)
  return f"{left} left of {right}" if left_first else f"{right} right of {left}"


def read_caption(text: str) -> Scene:
  """The inverse of `write_caption`.

  Raises:
    UserError: no such caption.
  """
  parts = CAPTION.fullmatch(text)
  names = list(COLOURS)
  if parts is None or not {parts[1], parts[4]} <= set(names) or not {parts[2], parts[5]} <= set(THINGS):
    raise UserError(f"caption {text[:80]!r}; expected one such as 'a red bag right of a blue t-shirt'")
  first, second = (
    (names.index(colour), THINGS.index(thing))
    for colour, thing in ((parts[1], parts[2]), (parts[4], parts[5]))
  )
  return Scene(first, second) if parts[3] == "left" else Scene(second, first)


def clothes_contents(source: SourceOptions) -> Contents:
  """The captioned pictures of every split, the same at every call.

  Raises:
    UserError: the files of Fashion-MNIST are missing or damaged.
  """
  folder = source.path or FOLDER
  if not folder.is_dir():
    raise UserError(
      f"'{folder}' does not exist; install {PACKAGE}, or give a folder of its files as --source"
    )
  splits = {split: list(draw_examples(folder, split, source.max_bytes)) for split in COUNTS}
  return Contents(splits, [], notes=(NOTE,))


def draw_examples(folder: Path, split: str, max_bytes: int) -> Iterator[Example]:
  """The examples of a split; no thing of Fashion-MNIST is in two of them."""
  pictures, labels = read_things(folder, split, max_bytes)
  random = np.random.default_rng(zlib.crc32(split.encode()))
  rows = random.permutation(len(pictures))[: 2 * COUNTS[split]]
  things = [(draw_colour(random, int(labels[row]), split == "unseen"), int(labels[row])) for row in rows]
  for number in range(min(COUNTS[split], len(rows) // 2)):
    pair = slice(2 * number, 2 * number + 2)
    scene = Scene(*things[pair])
    load = functools.partial(compose, *pictures[rows[pair]], scene)
    caption = write_caption(scene, bool(random.integers(2)))
    yield Example(load, -1, f"{split} picture {number}", caption=caption)


def draw_colour(random: np.random.Generator, thing: int, unseen: bool) -> int:
  """A colour that a thing has in training, or the one that it never has there."""
  every = range(len(COLOURS))
  legal = [colour for colour in every if is_unseen(colour, thing) == unseen]
  return legal[random.integers(len(legal))]


def read_things(folder: Path, split: str, max_bytes: int) -> tuple[np.ndarray, np.ndarray]:
  """The grey pictures uint8 [N, 28, 28] and their classes uint8 [N]."""
  names = (f"{FILES[split]}-{suffix}-ubyte.gz" for suffix in ("images-idx3", "labels-idx1"))
  return tuple(read_idx(folder / name, rank, max_bytes) for name, rank in zip(names, (3, 1), strict=True))


def compose(left: np.ndarray, right: np.ndarray, scene: Scene) -> Image.Image:
  """Two grey pictures [28, 28] as one canvas, RGB, in the colours of a scene."""
  canvas = np.zeros(SHAPE, np.uint8)
  for side, (grey, (colour, _)) in enumerate(zip((left, right), scene)):
    start = MARGIN + side * SHAPE[0]
    tint = np.array(list(COLOURS.values())[colour]) / 255
    canvas[MARGIN : MARGIN + SIDE, start : start + SIDE] = np.rint(grey[..., None] * tint)
  return Image.fromarray(canvas)
