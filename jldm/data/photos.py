"""Crops of the colour photographs of scikit-learn and scikit-image: real pictures without a download.

Every photograph is split first: held-out crops come from a band in its middle, training crops from
the parts left and right of it, so they share no pixel.  Each part is shrunk to several scales and
cropped at random places, which may overlap.  Of two random places the one with more contrast is
taken, else half of the crops would be empty sky.  Training crops are mirrored at random.

All are free: china and flower CC BY 2.0 (D. Buechele, vultilion), chelsea and coffee CC0 (S. van
der Walt, R. Michetti), astronaut (NASA) and rocket (SpaceX) in the public domain.
"""

from collections.abc import Callable, Iterator
import functools
import importlib.util
import itertools
from pathlib import Path
from typing import NamedTuple
import zlib

import numpy as np
from PIL import Image, ImageOps

from jldm.core.errors import UserError
from jldm.data import transforms
from jldm.data.buckets import Shape

SKLEARN = ("china.jpg", "flower.jpg")
SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
SCALES = (1.0, 0.7, 0.5)  # the scales at which a photograph is cropped
HELD_OUT = (0.4, 0.65)  # the band, as shares of a photograph's width
COUNTS = {"train": 700, "test": 70}  # crops of a photograph

Box = tuple[int, int, int, int]  # left, top, right, bottom


class Crop(NamedTuple):
  load: Callable[[], Image.Image]
  photograph: int  # its number in `photograph_names`
  origin: str


def photograph_names() -> list[str]:
  return [name.partition(".")[0] for name in SKLEARN + SKIMAGE]


def load_photographs() -> list[Image.Image]:
  """All of them, RGB, in the order of `photograph_names`; UserError if scikit-image is not installed."""
  from sklearn.datasets import load_sample_image  # a second to import, for this alone

  package = importlib.util.find_spec("skimage")  # its files are all that is used
  if package is None:
    raise UserError("photos need the photographs of scikit-image; install it: pip install 'jldm[photos]'")
  folder = Path(package.submodule_search_locations[0]) / "data"
  return [Image.fromarray(load_sample_image(name)) for name in SKLEARN] + [
    transforms.read_picture(folder / name) for name in SKIMAGE
  ]


def split_photograph(photograph: Image.Image) -> dict[str, list[Image.Image]]:
  """The parts for training, left and right, and the held-out part between them."""
  width, height = photograph.size
  edges = [0, *(round(share * width) for share in HELD_OUT), width]
  left, middle, right = (photograph.crop((a, 0, b, height)) for a, b in itertools.pairwise(edges))
  return {"train": [left, right], "test": [middle]}


def scaled_copies(part: Image.Image, size: Shape) -> list[Image.Image]:
  """`part` at every scale of SCALES at which `size` (height, width) fits into it."""
  scaled = [(round(scale * part.width), round(scale * part.height)) for scale in SCALES]
  return [
    part.resize(side, Image.Resampling.BICUBIC)
    for side in scaled
    if side[0] >= size[1] and side[1] >= size[0]
  ]


def random_crops(split: str, size: Shape) -> Iterator[Crop]:
  """The crops of a split, the same at every call.

  Raises:
    UserError: scikit-image is missing, or `size` (height, width) does not fit into every part.
  """
  for number, (name, photograph) in enumerate(zip(photograph_names(), load_photographs(), strict=True)):
    images = []
    for part in split_photograph(photograph)[split]:
      images += scaled_copies(part, size)
      if not images:
        raise UserError(
          f"size {size[0]}x{size[1]} of photos, but {name} has {part.height}x{part.width} for {split}; "
          "choose a smaller --size, such as 64"
        )
    random = np.random.default_rng(zlib.crc32(f"{split} {name}".encode()))
    for _ in range(COUNTS[split]):
      image = images[random.integers(len(images))]
      box = max(
        (random_box(random, image, size) for _ in range(2)),
        key=lambda box, image=image: grey_contrast(image.crop(box)),
      )
      mirror = split == "train" and bool(random.integers(2))
      yield Crop(functools.partial(crop_box, image, box, mirror), number, f"{name} at {box}")


def random_box(random: np.random.Generator, image: Image.Image, size: Shape) -> Box:
  """A random place of `size` (height, width) in an image."""
  left, top = (int(random.integers(room + 1)) for room in (image.width - size[1], image.height - size[0]))
  return left, top, left + size[1], top + size[0]


def grey_contrast(image: Image.Image) -> float:
  return float(np.asarray(image.convert("L"), np.float32).std())


def crop_box(image: Image.Image, box: Box, mirror: bool) -> Image.Image:
  """The box of an image, perhaps mirrored."""
  piece = image.crop(box)
  return ImageOps.mirror(piece) if mirror else piece
