"""The names of the classes go from the folders to the workdir, and from there into labels and PNG text."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from jldm.core.errors import UserError
from jldm.data.prepare import prepare
from jldm.data.tfds import ImageData
from jldm.media import sheets
from jldm.runs import train as training
from jldm.storage.class_names import read_class_names, write_class_names
from tests.configs import config, shrunk


def test_a_run_keeps_the_names_of_its_folders(tmp_path, monkeypatch):
  for name in ("cat", "9", "10"):
    (tmp_path / "S" / name).mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "S" / name / "a.png")
  prepare("folder", tmp_path / "S", "mine", tmp_path / "data")
  data = ImageData(
    name="mine", data_dir=str(tmp_path / "data"), held_out="train", height=32, width=32, channels=3, classes=3
  )
  assert data.class_names() == ["9", "10", "cat"]
  assert dataclasses.replace(data, classes=0).class_names() == []
  monkeypatch.setattr(training, "train_stage", lambda *args: None)
  monkeypatch.setattr(training.validate, "validate_run", lambda *args: None)
  training.train(dataclasses.replace(shrunk(config("folder")), data=data), tmp_path / "w")
  assert read_class_names(tmp_path / "w") == ["9", "10", "cat"]


def test_names_that_are_the_labels_need_no_file(tmp_path):
  write_class_names(tmp_path, [str(label) for label in range(10)])
  write_class_names(tmp_path, [])
  assert not list(tmp_path.iterdir()) and read_class_names(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "5", '{"a": 1}', "[1, 2]", "[" * 100_000, "\udcff"])
def test_a_damaged_file_is_one_line(tmp_path, text):
  (tmp_path / "classes.json").write_bytes(text.encode(errors="surrogateescape"))
  with pytest.raises(UserError, match=r"classes\.json.*delete it, and give labels as numbers") as caught:
    read_class_names(tmp_path)
  assert "\n" not in str(caught.value)


def test_titles_of_rows_are_names_that_differ():
  assert sheets.row_titles([1, 0], ["ant", "bee"]) == ["bee", "ant"]
  assert sheets.row_titles([0, 0, 1], ["ant", "bee"]) == ["0 ant", "1 ant", "2 bee"]
  assert sheets.row_titles([3, 5], ["ant"] * 6) == ["3 ant", "5 ant"]
  assert sheets.row_titles([0, 2], ["ant", "bee"]) == sheets.row_titles([-1], ["ant"]) == []


def test_rows_have_their_titles_on_the_left():
  rows = [np.full((3, 32, 32, 1), 7, np.uint8)] * 2
  plain, titled = sheets.titled_rows(rows, []), sheets.titled_rows(rows, ["ant", "bee"])
  np.testing.assert_array_equal(titled[:, -plain.shape[1] :], np.broadcast_to(plain, (*plain.shape[:2], 3)))
  margin = titled[:, : -plain.shape[1]].min((1, 2))  # of each line of pixels
  above, below = np.split(margin, 2)
  assert above.min() < sheets.PAPER > below.min() and margin.max() == sheets.PAPER, "a title beside each row"


def test_the_grid_has_a_named_row_per_class():
  images = np.random.default_rng(0).integers(0, 200, (6, 32, 32, 3), np.uint8)
  labels = np.array([0, 0, 1, 1, 1, 2])
  plain = sheets.samples_grid(images, labels)
  named = sheets.samples_grid(images, labels, ["ant", "bee\x1b", "a long name of a class with many letters"])
  np.testing.assert_array_equal(named[:, -plain.shape[1] :], plain)
  margin = named[:, : -plain.shape[1]]
  assert 0 < margin.shape[1] < 200 and margin.min() < 50, "names are drawn beside the rows"
  same = sheets.samples_grid(images, labels, ["x" * 30 + str(k) for k in range(3)])
  assert same.shape[0] == plain.shape[0], "no class is lost where names begin alike"
  for unknown in (labels - 1, labels * 0, labels + 1):
    np.testing.assert_array_equal(
      sheets.samples_grid(images, unknown, ["a", "b", "c"]), sheets.samples_grid(images, unknown)
    )
