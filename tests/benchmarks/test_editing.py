"""What the benchmark of edits measures, on pictures whose answer is known."""

import numpy as np
import pytest

from benchmarks import editing

HOLE = np.zeros((8, 8), bool)
HOLE[2:6, 2:6] = True


def test_a_hole_of_one_level_is_all_seam():
  images = np.where(HOLE, 150, 50).astype(np.uint8)[None, ..., None]
  assert editing.seam(images, HOLE) == (100.0, 0.0)


def test_a_ramp_has_no_seam():
  images = np.broadcast_to(np.arange(8, dtype=np.uint8) * 10, (3, 8, 8))[..., None]
  across, inside = editing.seam(images, HOLE)
  assert across == inside == 5.0, "half of the neighbours are in a row"


def test_decibels_are_of_the_hole_alone():
  a = np.zeros((2, 8, 8, 1), np.uint8)
  b = np.where(HOLE[..., None], a + 255, a + 7).astype(np.uint8)
  assert editing.decibels(a, b, HOLE) == pytest.approx(0)
  assert editing.decibels(a, a + 255) == pytest.approx(0)


def test_silhouettes_are_shares_of_what_either_covers():
  a, b = np.zeros((1, 4, 4, 1), np.uint8), np.zeros((1, 4, 4, 1), np.uint8)
  a[:, :2], b[:, 1:3] = 200, 100
  assert editing.silhouettes(a, b) == pytest.approx(1 / 3)
  assert editing.silhouettes(a, a) == 1


def test_a_table_has_a_line_a_row():
  assert (
    editing.table([{"a": "x", "b": 1.234}, {"a": "y", "b": 12.34}])
    == "| a | b |\n|---|---|\n| x | 1.23 |\n| y | 12.3 |\n"
  )
