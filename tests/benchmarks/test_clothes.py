"""The sheet and the table of benchmarks/clothes.py."""

import numpy as np

from benchmarks import clothes
from jldm.data.clothes import is_unseen, read_caption


def test_the_sheet_has_pairs_of_training_and_pairs_that_no_training_picture_has():
  unseen = [[is_unseen(*thing) for thing in read_caption(caption)] for caption in clothes.SHEET]
  assert unseen == [[False, False]] * 2 + [[True, True]] * 2


def test_a_row_has_every_figure_that_says_something():
  images = np.zeros((2, 32, 64, 3), np.uint8)
  row = clothes.row("black", images, [clothes.SHEET[0]] * 2)
  name, _, colour, swapped, whole = [cell.strip() for cell in row.split("|")[1:-1]]
  assert (name, colour, swapped, whole) == ("black", "0.500", "", "0.000")
