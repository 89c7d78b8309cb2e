import argparse

import numpy as np
from PIL import Image
import pytest

from jldm.cli import prepare
from jldm.core.errors import UserError


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


def test_it_prints_one_line(photos, tmp_path, capfd):
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
  assert out == f"{tmp_path}/data/pets/1.0.0: train 3 images; height 8, width 12, channels 1; 2 classes\n"
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
  assert first == "data/digits/1.0.0: train 1797 images; height 8, width 8, channels 1; 10 classes\n"
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
