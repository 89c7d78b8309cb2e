"""What a draw writes, batch by batch."""

import json
import os
import subprocess
import sys

import numpy as np
from PIL import Image

from jldm.media import images as pictures
from tests.draws import write_draw


def noise(*shape):
  return np.random.default_rng(0).integers(0, 200, shape, np.uint8)


def test_samples_are_numbered_and_know_their_label(tmp_path):
  images, labels = noise(12, 8, 8, 3), np.arange(12) % 3
  write_draw(tmp_path / "out", images, labels, {"seed": 7})
  names = sorted(path.name for path in (tmp_path / "out").iterdir())
  assert names == [f"{i:05d}.png" for i in range(12)] + ["grid.png"]
  assert pictures.read_provenance(tmp_path / "out" / "00010.png") == {"seed": 7, "index": 10, "label": 1}
  assert pictures.read_provenance(tmp_path / "out" / "grid.png") == {"seed": 7}
  with Image.open(tmp_path / "out" / "grid.png") as grid:
    assert grid.size == (4 * 66 + 2, 3 * 66 + 2)  # four to a class, enlarged to 64 pixels


def test_pictures_name_their_class(tmp_path):
  write_draw(tmp_path, np.zeros((3, 4, 4, 1), np.uint8), np.array([1, 0, -1]), {}, ["ant", "bee"])
  texts = [pictures.read_provenance(tmp_path / f"{i:05d}.png") for i in range(3)]
  assert [text.get("class") for text in texts] == ["bee", "ant", None]
  assert [text["label"] for text in texts] == [1, 0, -1]
  assert json.dumps(texts)


def test_what_a_killed_draw_left_of_a_picture_goes_and_nothing_else(tmp_path):
  ended = subprocess.Popen([sys.executable, "-c", ""])
  ended.wait()
  kept = [f".00000.png.{os.getpid()}", ".00001.png.old", f".mine.png.{ended.pid}", ".x"]
  for name in (*kept, f".00001.png.{ended.pid}", f".grid.png.{ended.pid}"):
    (tmp_path / name).write_bytes(b"half")
  write_draw(tmp_path, noise(2, 4, 4, 1), np.arange(2), {"seed": 1})
  assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
    ["00000.png", "00001.png", "grid.png", *kept[1:]]
  )
