"""Emoji with their names: 3,655 real pictures with real captions, such as "woman astronaut: dark skin tone".

Drawn from Noto Color Emoji (Google; font OFL-1.1, art Apache-2.0) by the list of Unicode (Unicode licence),
which Debian has as fonts-noto-color-emoji and unicode-data.  The classes are Unicode's groups.  Of every
role, which is a name without its man or woman, one of the five tones of skin is held out: the split "test"
has known words in new combinations.
"""

from collections.abc import Iterator
from pathlib import Path
import re
from typing import NamedTuple
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from jldm.core.errors import UserError
from jldm.data.contents import Contents, SourceOptions, array_examples, require_source

FONT = ("NotoColorEmoji.ttf", Path("/usr/share/fonts/truetype/noto"))  # file, and where Debian has it
NAMES = ("emoji-test.txt", Path("/usr/share/unicode/emoji"))
PACKAGES = "Debian's fonts-noto-color-emoji and unicode-data"
NOTE = (
  "emoji of Noto Color Emoji (Google LLC; font OFL-1.1, art Apache-2.0), names of Unicode (Unicode licence)"
)
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
GENDERS = re.compile(r"^(man|woman|men|women|person|people|boy|girl|child)\b ?")
LINE = re.compile(r"([0-9A-F ]+?)\s*; fully-qualified\s*# \S+ E\d+\.\d+ (.+)")
STRIKE = 109  # the one size of the font's pictures, 136x128 each
BOX = (6, 2, 150, 146)  # a square around a picture that is drawn at (10, 10)


class Emoji(NamedTuple):
  text: str  # its code points
  caption: str
  group: str


def emoji_contents(source: SourceOptions) -> Contents:
  """All emoji, by default 64x64, on white.

  Raises:
    UserError: files or Pillow's raqm are missing, or the size is not square.
  """
  if source.path:
    require_source(source.path, "emoji", f"a folder with {FONT[0]} and {NAMES[0]}", Path.is_dir)
  height, width = source.size or (64, 64)
  if height != width:
    raise UserError(f"size {height}x{width} of emoji; expected a square, such as --size 64")
  if not features.check("raqm"):
    raise UserError(
      "this Pillow has no raqm, which joins code points to emoji; install Pillow's wheel of PyPI"
    )
  font = ImageFont.truetype(str(find_file(*FONT, source.path)), STRIKE)
  every = list(read_names(find_file(*NAMES, source.path)))
  groups = list(dict.fromkeys(each.group for each in every))
  splits = {}
  for split, held_out in (("train", False), ("test", True)):
    chosen = [each for each in every if is_held_out(each.caption) == held_out]
    images = (draw(font, each.text, height) for each in chosen)
    labels = [groups.index(each.group) for each in chosen]
    captions = [each.caption for each in chosen]
    splits[split] = array_examples(images, labels, f"{split} emoji", captions)
  return Contents(splits, groups, notes=(NOTE,))


def find_file(name: str, folder: Path, given: Path | None) -> Path:
  """A file in the folder that is given, or where Debian has it.

  Raises:
    UserError: it is in neither.
  """
  places = [place / name for place in (given, folder) if place]
  found = next((path for path in places if path.is_file()), None)
  if found is None:
    raise UserError(
      f"'{places[0]}' does not exist; install {PACKAGES}, or give a folder with {FONT[0]} and {NAMES[0]} "
      "as --source"
    )
  return found


def read_names(path: Path) -> Iterator[Emoji]:
  """The emoji of Unicode's list, fully qualified ones alone.

  Raises:
    UserError: there are none.
  """
  group, count = "", 0
  for line in path.read_text("utf-8", "replace").splitlines():
    group = line.removeprefix("# group: ") if line.startswith("# group: ") else group
    if parts := LINE.fullmatch(line):
      count += 1
      yield Emoji("".join(chr(int(code, 16)) for code in parts[1].split()), parts[2], group)
  if not count:
    raise UserError(f"'{path}' has no fully-qualified emoji; expected Unicode's emoji-test.txt")


def role_and_tone(caption: str) -> tuple[str, str]:
  """What an emoji shows without its gender, and its tone of skin: "" for none and for several."""
  base, _, detail = caption.partition(": ")
  tone = detail.removesuffix(" skin tone")
  role = GENDERS.sub("", base) or base
  return role, tone if tone in TONES and tone != detail else ""


def is_held_out(caption: str) -> bool:
  """Whether the tone is the one that its role has in no training picture."""
  role, tone = role_and_tone(caption)
  return tone == TONES[zlib.crc32(role.encode()) % len(TONES)]


def draw(font: ImageFont.FreeTypeFont, text: str, side: int) -> np.ndarray:
  """An emoji on white, uint8 [side, side, 3]."""
  canvas = Image.new("RGBA", (160, 160), "white")
  ImageDraw.Draw(canvas).text((10, 10), text, font=font, embedded_color=True)
  return np.asarray(canvas.crop(BOX).convert("RGB").resize((side, side), Image.Resampling.LANCZOS))
