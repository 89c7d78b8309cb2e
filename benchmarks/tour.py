"""The first picture of the README, out of pictures of the docs.

python -m benchmarks.tour           docs/tour.png
"""

from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"
GAP = 8
COLUMNS = (  # a picture of the docs, and the part of it that is shown: left, top, right, bottom
  [("fashion_mnist_900.png", None)],
  [
    ("editing_repainted.png", (72, 68, 601, 200)),
    ("conditioned_colour.png", (0, 66, 464, 134)),
    ("conditioned_colour.png", (0, 200, 464, 266)),
  ],
)


def stack(pictures: list[Image.Image], across: bool) -> Image.Image:
  """Pictures on white, side by side or one below the other, GAP apart."""
  sizes = [picture.size if across else picture.size[::-1] for picture in pictures]
  along, other = sum(size[0] + GAP for size in sizes) - GAP, max(size[1] for size in sizes)
  whole = Image.new("RGB", (along, other) if across else (other, along), "white")
  place = 0
  for picture, size in zip(pictures, sizes):
    whole.paste(picture, (place, 0) if across else (0, place))
    place += size[0] + GAP
  return whole


def main() -> None:
  opened = [[Image.open(DOCS / name).convert("RGB").crop(box) for name, box in column] for column in COLUMNS]
  stack([stack(column, across=False) for column in opened], across=True).save(
    DOCS / "tour.png", optimize=True
  )


if __name__ == "__main__":
  main()
