import argparse
import json
import os
from pathlib import Path
import shutil

import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits

from jldm.cli import main, prepare
from jldm.core.errors import UserError
from jldm.data import transforms
from jldm.data.folder import natural_order
from jldm.data.tfds import ImageData


def run(*words):
  parser = argparse.ArgumentParser()
  prepare.add_arguments(parser)
  prepare.main(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def photos(tmp_path):
  for name, shape in (("ant/a.png", (10, 14, 3)), ("bee/b.png", (12, 12, 3)), ("bee/c.png", (12, 30, 3))):
    (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, 90, np.uint8)).save(tmp_path / "photos" / name)
  return tmp_path / "photos"


def test_it_prints_a_line_and_a_table(photos, tmp_path, capfd):
  run(
    "folder",
    "--source",
    photos,
    "--name",
    "pets",
    "--data-dir",
    tmp_path / "data",
    "--size",
    "6x10",
    "--pad",
    "1",
    "--channels",
    "1",
  )
  out, err = capfd.readouterr()
  assert out == (
    f"{tmp_path}/data/pets/1.0.0: train 3 images; height 8, width 12, channels 1; 2 classes\n"
    "  label 0  ant  train 1\n"
    "  label 1  bee  train 2\n"
  )
  assert err == ""  # the progress bars of a terminal, and nothing of TFDS


def test_buckets(photos, tmp_path, capsys):
  run(
    "folder",
    "--source",
    photos,
    "--name",
    "pets",
    "--data-dir",
    tmp_path / "data",
    "--size",
    "8",
    "--buckets",
    "4x16,16X4",
  )
  assert capsys.readouterr().out == (
    f"{tmp_path}/data/pets/1.0.0: train 3 images; 8x8, 4x16, 16x4 (height x width), channels 3; 2 classes\n"
    "  label 0  ant  train 1\n"
    "  label 1  bee  train 2\n"
  )


@pytest.mark.parametrize("buckets", ["", "4x", "4x16,", "4x16;16x4"])
def test_wrong_buckets_are_refused(photos, tmp_path, buckets):
  with pytest.raises(UserError, match=r"--buckets '.*'; expected one number, as in 64, or HEIGHTxWIDTH"):
    run(
      "folder",
      "--source",
      photos,
      "--name",
      "pets",
      "--data-dir",
      tmp_path / "data",
      "--size=8",
      f"--buckets={buckets}",
    )
  assert not (tmp_path / "data").exists()


def test_digits_need_no_name_and_can_be_asked_for_again(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  run("digits", "--size", "8")
  first = capsys.readouterr().out
  line, *table = first.splitlines()
  assert line == "data/digits/1.0.0: train 1797 images; height 8, width 8, channels 1; 10 classes"
  assert [row.split() for row in table] == [
    ["label", str(k), str(k), "train", str(n)] for k, n in enumerate(np.bincount(load_digits().target))
  ]
  run("digits", "--if-missing")
  assert capsys.readouterr().out == first
  with pytest.raises(UserError, match="already in 'data'"):
    run("digits")


def test_other_kinds_need_a_name(photos):
  with pytest.raises(UserError, match="prepare folder without a name; give one with --name"):
    run("folder", "--source", photos)


@pytest.mark.parametrize("size", ["", "x", "6x", "6x7x8", "-6", "6.5", "a"])
def test_a_wrong_size_is_refused(photos, tmp_path, size):
  with pytest.raises(UserError, match=f"--size '{size}'; expected one number"):
    run("folder", "--source", photos, "--name", "pets", "--data-dir", tmp_path / "data", f"--size={size}")
  assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("text", "size"), [("64", (64, 64)), ("64x96", (64, 96)), ("64X96", (64, 96))])
def test_sizes_are_height_then_width(text, size):
  assert prepare.parse_size(text) == size


# ---- what other people's folders are like


def save(path, size=(8, 8), level=90, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path, **options)


def prepared(tmp_path, *options, source="S"):
  run("folder", "--source", tmp_path / source, "--name", "mine", "--data-dir", tmp_path / "data", *options)
  return tmp_path / "data" / "mine" / "1.0.0"


def test_every_picture_is_used_or_named(tmp_path, capsys):
  names = ("a.png", "b.jfif", "c.jpe", "d.ppm", "e.tga", "f.avif", "g.jp2")
  for name in names:
    save(tmp_path / "S" / name)
  for name in ("notes.txt", ".DS_Store", "clip.mp4", "no_extension"):
    (tmp_path / "S" / name).write_text("x")
  os.mkfifo(tmp_path / "S" / "fifo.png")
  os.symlink("/nowhere", tmp_path / "S" / "gone.png")
  os.symlink("/dev/zero", tmp_path / "S" / "zero.png")
  prepared(tmp_path)
  out = capsys.readouterr().out
  assert "train 7 images" in out
  for line in (
    "left out: 1 hidden (.DS_Store)",
    "left out: 1 with the extension .txt, which is not read (notes.txt)",
    "left out: 1 with the extension .mp4, which is not read (clip.mp4)",
    "left out: 1 without an extension (no_extension)",
    "left out: 3 no file (a link that leads nowhere, a FIFO or a device) (fifo.png, gone.png, zero.png)",
  ):
    assert f"  {line}\n" in out


def test_classes_are_in_natural_order(tmp_path, capsys):
  for number in range(12):
    save(tmp_path / "S" / str(number) / "a.png", level=number)
  folder = prepared(tmp_path)
  assert json.loads((folder / "metadata.json").read_text())["classes"] == [str(n) for n in range(12)]
  assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
    ["label", str(number), str(number), "train", "1"] for number in range(12)
  ]
  source = ImageData(
    name="mine", data_dir=str(tmp_path / "data"), height=8, width=8, channels=3, classes=12
  ).open("train")
  batch = source[np.arange(12)]
  np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["label"])


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    (["img10", "img9", "img1"], ["img1", "img9", "img10"]),
    (["b", "a", "B", "10", "9"], ["9", "10", "B", "a", "b"]),
    (["1.10", "1.9", "01", "1"], ["1", "1.9", "1.10", "01"]),
  ],
)
def test_natural_order(names, expected):
  assert natural_order(names) == expected


def test_linked_folders_are_read_and_circles_end(tmp_path, capsys):
  save(tmp_path / "elsewhere" / "b.png")
  save(tmp_path / "S" / "cat" / "a.png")
  os.symlink(tmp_path / "elsewhere", tmp_path / "S" / "dog")
  os.symlink(tmp_path / "S" / "cat", tmp_path / "S" / "cat" / "again")
  prepared(tmp_path)
  out = capsys.readouterr().out
  assert "label 1  dog  train 1" in out and "train 2 images" in out
  assert "left out: 1 folder linked to more than once (cat/again)" in out


def test_folders_that_cannot_be_read_are_reported(tmp_path, capsys, monkeypatch):
  save(tmp_path / "S" / "cat" / "a.png")
  save(tmp_path / "S" / "cat" / "locked" / "b.png")
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith("locked"):
      raise PermissionError(13, "Permission denied", path)
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)  # root may read anything
  prepared(tmp_path)
  assert "left out: 1 folder that cannot be read (Permission denied) (cat/locked)" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("folders", "splits"),
  [
    (("train", "val"), {"train": 3, "test": 2}),
    (("Training", "Validation"), {"train": 3, "test": 2}),
    (("train", "test"), {"train": 3, "test": 2}),
  ],
)
def test_folders_of_splits_are_splits(tmp_path, capsys, folders, splits):
  for name, count in zip(folders, splits.values(), strict=True):
    for number in range(count):
      save(tmp_path / "S" / name / ("cat" if number else "dog") / f"{number}.png")
  folder = prepared(tmp_path)
  metadata = json.loads((folder / "metadata.json").read_text())
  assert metadata["classes"] == ["cat", "dog"]
  assert metadata["counts"] == {"train": [2, 1], "test": [1, 1]}
  out = capsys.readouterr().out
  assert f"splits: train from '{tmp_path}/S/{folders[0]}', test from '{tmp_path}/S/{folders[1]}'" in out
  assert "label 0  cat  train 2, test 1" in out


def test_three_folders_of_splits(tmp_path, capsys):
  for name in ("train", "val", "test"):
    save(tmp_path / "S" / name / "a.png")
  prepared(tmp_path)
  assert "train 1 image, val 1 image" in capsys.readouterr().out.replace("test 1 image, ", "")


def test_a_class_called_train_next_to_others_is_a_class(tmp_path):
  for name in ("train", "test", "bus"):
    save(tmp_path / "S" / name / "a.png")
  folder = prepared(tmp_path)
  assert json.loads((folder / "metadata.json").read_text())["classes"] == ["bus", "test", "train"]


def test_one_class_of_folders_is_reported(tmp_path, capsys):
  for name in ("2020", "2021"):
    save(tmp_path / "S" / "images" / name / "a.png")
  prepared(tmp_path)
  out = capsys.readouterr().out
  assert "one class alone, 'images', of all folders within it (2020, 2021)" in out
  assert f"to have these as classes: --source '{tmp_path}/S/images'" in out


def test_a_held_out_folder(tmp_path, capsys):
  for name in ("S/cat/a.png", "S/dog/b.png", "H/dog/c.png"):
    save(tmp_path / name)
  folder = prepared(tmp_path, "--held-out", tmp_path / "H")
  assert json.loads((folder / "metadata.json").read_text())["counts"] == {"train": [1, 1], "test": [0, 1]}
  assert f"test from '{tmp_path}/H'" in capsys.readouterr().out


def test_wrong_held_out_folders(tmp_path):
  for name in ("S/cat/a.png", "T/train/a.png", "T/val/a.png", "bird/bird/c.png", "flat/c.png"):
    save(tmp_path / name)
  for source, held_out, message in (
    ("S", "bird", "class 'bird' of the held-out pictures is none of those to train on \\(cat\\)"),
    ("S", "flat", "splits with classes \\(cat\\) and without"),
    ("S", "none", "held_out='.*none' is not a folder; .*--held-out"),
    ("T", "flat", "held_out='.*flat' with '.*T', which has a folder 'train'"),
  ):
    with pytest.raises(UserError, match=message):
      prepared(tmp_path, "--held-out", tmp_path / held_out, source=source)
  with pytest.raises(UserError, match="held_out='x' with digits; expected none: only folder"):
    run("digits", "--data-dir", tmp_path / "data", "--held-out", "x")
  assert not (tmp_path / "data").exists()


def test_small_pictures_are_reported_of(tmp_path, capsys):
  save(tmp_path / "S" / "small.png", (4, 4))
  save(tmp_path / "S" / "wide.png", (8, 40))
  save(tmp_path / "S" / "large.png", (40, 40))
  prepared(tmp_path, "--size", "16")
  assert "  converted: 2 enlarged to 16x16 (" in capsys.readouterr().out


def test_all_damaged_pictures_are_named_or_left_out(tmp_path, capsys):
  for name in "abc":
    save(tmp_path / "S" / f"{name}.png", (64, 64), level=ord(name))
  for name in "ab":
    path = tmp_path / "S" / f"{name}.png"
    path.write_bytes(path.read_bytes()[:60])
  with pytest.raises(
    UserError, match=r"2 damaged pictures: .*a\.png .*b\.png .*; .*--skip-damaged"
  ) as caught:
    prepared(tmp_path)
  assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()
  prepared(tmp_path, "--skip-damaged")
  out = capsys.readouterr().out
  assert "train 1 image" in out and "left out: 2 damaged (" in out
  assert "a.png cannot be read as a picture (" in out
  (tmp_path / "S" / "c.png").write_bytes(b"x")
  with pytest.raises(UserError, match="3 damaged pictures"):
    prepared(tmp_path, "--skip-damaged", "--name", "other")


def test_large_pictures_need_the_option(tmp_path, capsys):
  save(tmp_path / "S" / "a.png", (20, 30))
  with pytest.raises(
    UserError, match=r"a\.png cannot be read as a picture \(600 pixels, .*max_pixels=599.*--max-pixels"
  ):
    prepared(tmp_path, "--max-pixels", "599")
  prepared(tmp_path, "--max-pixels", "600")
  assert "train 1 image" in capsys.readouterr().out
  with pytest.raises(UserError, match="max_pixels=0; expected at least 1"):
    prepared(tmp_path, "--max-pixels", "0", "--name", "other")


def test_pictures_over_89_million_pixels_are_named_without_a_raw_warning(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(transforms, "LARGE_PIXELS", 500)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # the limit of Pillow, which would refuse it
  save(tmp_path / "S" / "a.png", (20, 30))
  prepared(tmp_path)
  out, err = capsys.readouterr()
  assert f"converted: 1 decoded from over 500 pixels ({tmp_path}/S/a.png)" in out and err == ""


def test_float_pictures_are_read_by_one_rule(tmp_path, capsys):
  (tmp_path / "S").mkdir()
  for name, levels in (("a", [[-1, 0], [0.5, 0.25]]), ("b", [[0, 0.5], [1, 1.02]])):
    Image.fromarray(np.array(levels, np.float32)).save(tmp_path / "S" / f"{name}.tif")
  prepared(tmp_path)
  assert "2 float levels to 8 bits, -1 black and 1 white" in capsys.readouterr().out
  images = ImageData(name="mine", data_dir=str(tmp_path / "data"), height=2, width=2).open("train")[
    np.arange(2)
  ]["image"]
  assert sorted(image.ravel().tolist() for image in images) == [[0, 128, 191, 159], [128, 191, 255, 255]]


def test_float_pictures_that_no_rule_fits_are_named(tmp_path):
  (tmp_path / "S").mkdir()
  for name, levels in (("a", [[-1, 0]]), ("b", [[0, 200]])):
    Image.fromarray(np.array(levels, np.float32)).save(tmp_path / "S" / f"{name}.tif")
  Image.fromarray(np.array([[-90, 10]], np.float32)).save(tmp_path / "S" / "c.tif")
  with pytest.raises(
    UserError,
    match=r"float levels -90 ... 200; expected 0 ... 1, .*least in '.*c\.tif', greatest in '.*b\.tif'",
  ):
    prepared(tmp_path)


def test_damaged_exif_costs_nothing(tmp_path, capsys):
  shutil.copytree(Path(__file__).parents[1] / "media" / "exif", tmp_path / "S")
  prepared(tmp_path)
  out = capsys.readouterr().out
  assert (
    "train 4 images; height 16, width 8, channels 3" in out and "converted: 4 turned upright by EXIF" in out
  )


def test_names_with_escapes_are_printed_harmless(tmp_path, capsys):
  save(tmp_path / "S" / "cat\x1b[31m" / "a.png")
  prepared(tmp_path)
  out = capsys.readouterr().out
  assert "\x1b" not in out and "cat" in out


def test_info_shows_a_data_set(tmp_path, capsys):
  for name in ("S/cat/a.png", "S/dog/b.png", "S/dog/c.png"):
    save(tmp_path / name)
  prepared(tmp_path)
  shown = capsys.readouterr().out
  assert main(["info", str(tmp_path / "data" / "mine")]) == 0
  assert capsys.readouterr().out == shown and "label 1  dog  train 2" in shown
