"""The files that `jldm edit` reads: pictures, masks and examples, as people have them."""

import argparse
import os
from pathlib import Path

import numpy as np
from PIL import Image
import pytest

from jldm.cli import edit, edit_kinds
from jldm.core.errors import UserError
from jldm.media.open import MAX_PIXELS

IMAGE = np.zeros((1, 32, 32, 1), np.uint8)
STROKE = np.zeros((32, 32), bool)
STROKE[8:24, 4:20] = True  # 16 x 16: 256 of 1,024 pixels
EXIF = Path(__file__).parents[1] / "media" / "exif"


def layers(*values):
  """A picture of 32x32 with a channel per (inside, outside) pair of levels."""
  return np.stack([np.where(STROKE, inside, outside) for inside, outside in values], -1).astype(np.uint8)


def palette(transparency):
  image = Image.fromarray(np.where(STROKE, 1, 0).astype(np.uint8), "P")
  image.putpalette([255, 255, 255, 255, 255, 255])  # white, inside and outside
  return image, {"transparency": transparency}


MASKS = {
  "RGBA on black": (Image.fromarray(layers((255, 0), (255, 0), (255, 0), (255, 0))), {}),
  "RGBA on white": (Image.fromarray(layers((255, 255), (255, 255), (255, 255), (255, 0))), {}),
  "RGBA, black is kept": (Image.fromarray(layers((255, 0), (255, 0), (255, 0), (255, 255))), {}),
  "LA on white": (Image.fromarray(layers((255, 255), (255, 0)), "LA"), {}),
  "LA on black": (Image.fromarray(layers((255, 0), (255, 0)), "LA"), {}),
  "palette, one colour transparent": palette(0),
  "palette, alpha of each colour": palette(bytes([0, 255])),
  "RGB with tRNS": (
    Image.fromarray(layers((255, 254), (255, 255), (255, 255))),
    {"transparency": (254, 255, 255)},
  ),
  "L with tRNS": (Image.fromarray(layers((255, 200))[..., 0]), {"transparency": 200}),
  "1 bit": (Image.fromarray(STROKE), {}),
  "L": (Image.fromarray(layers((255, 0))[..., 0]), {}),
  "L, grey": (Image.fromarray(layers((128, 127))[..., 0]), {}),
  "half opaque": (Image.fromarray(layers((255, 255), (128, 127)), "LA"), {}),
  "16 bits": (Image.fromarray(np.where(STROKE, 65535, 0).astype(np.uint16)), {}),
  "16 bits with tRNS": (
    Image.fromarray(np.where(STROKE, 65535, 65000).astype(np.uint16)),
    {"transparency": 65000},
  ),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_where_it_is_white_and_opaque(tmp_path, name, capsys):
  image, options = MASKS[name]
  image.save(tmp_path / "M.png", **options)
  known = edit_kinds.read_mask(str(tmp_path / "M.png"), IMAGE, MAX_PIXELS)
  np.testing.assert_array_equal(known[0, ..., 0], ~STROKE)
  assert capsys.readouterr().out == f"mask {tmp_path}/M.png: 256 of 1024 pixels (25.0%) will be repainted\n"


def test_a_mask_of_transparent_white_is_empty(tmp_path):
  Image.fromarray(layers((255, 255), (0, 0)), "LA").save(tmp_path / "M.png")
  with pytest.raises(UserError, match=r"M\.png is empty: nothing in it is white and opaque"):
    edit_kinds.read_mask(str(tmp_path / "M.png"), IMAGE, MAX_PIXELS)


@pytest.mark.parametrize("name", sorted(path.name for path in EXIF.iterdir()))
@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data larger")
def test_a_mask_with_a_malformed_tag_is_upright(tmp_path, name):
  with Image.open(EXIF / name) as image:
    exif = image.info["exif"]
  Image.fromarray(STROKE).save(tmp_path / "M.png", exif=exif)  # of orientation 6
  known = edit_kinds.read_mask(str(tmp_path / "M.png"), IMAGE, MAX_PIXELS)
  np.testing.assert_array_equal(known[0, ..., 0] == 0, np.rot90(STROKE, -1))


def test_a_mask_that_is_no_file_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "M.png")
  with pytest.raises(UserError, match=r"M\.png cannot be read as a picture \(a FIFO"):
    edit_kinds.read_mask(str(tmp_path / "M.png"), IMAGE, MAX_PIXELS)


def test_a_large_mask_needs_the_option(tmp_path):
  Image.fromarray(STROKE).save(tmp_path / "M.png")
  with pytest.raises(UserError, match=r"M\.png .*1024 pixels, more than max_pixels=1023; .*--max-pixels"):
    edit_kinds.read_mask(str(tmp_path / "M.png"), IMAGE, 1023)


def examples(path):
  return edit_kinds.read_examples(argparse.Namespace(examples=str(path), having=1, without=0), IMAGE)


def test_float_pictures_are_read_by_one_rule(tmp_path, monkeypatch):
  monkeypatch.setattr(edit_kinds.canvas, "image_channels", lambda model: 1)
  paths = [str(tmp_path / f"{name}.tif") for name in "ab"]
  for path, levels in zip(paths, ([[0, 1]], [[-1, 0.5]])):
    Image.fromarray(np.array(levels, np.float32)).save(path)
  images = edit_kinds.read_pictures(paths, None, MAX_PIXELS)
  assert images.ravel().tolist() == [128, 255, 0, 191]
  assert edit_kinds.read_pictures(paths[:1], None, MAX_PIXELS).ravel().tolist() == [0, 255]
  Image.fromarray(np.array([[-50, 0.5]], np.float32)).save(paths[1])
  with pytest.raises(UserError, match=r"-50 ... 1; expected .*least in '.*b\.tif'"):
    edit_kinds.read_pictures(paths, None, MAX_PIXELS)


def test_classes_by_name():
  args = argparse.Namespace(label="cat", onto="10", having=None)
  edit.resolve_labels(args, ["1", "10", "cat"])
  assert vars(args) == {"label": 2, "onto": 1, "having": None}
  args = argparse.Namespace(label="-1", without="5")
  edit.resolve_labels(args, [])
  assert vars(args) == {"label": -1, "without": 5}
  with pytest.raises(UserError, match="--onto dog; expected one of the classes cat, or a number, or -1"):
    edit.resolve_labels(argparse.Namespace(onto="dog"), ["cat"])


IMAGES, LABELS = np.zeros((4, 32, 32, 1), np.uint8), np.arange(4) % 2
EXAMPLES = {
  "labels of another length": (
    {"images": IMAGES, "labels": LABELS[:3]},
    r"labels int64 \[3\]; expected integers \[4\]",
  ),
  "labels of text": (
    {"images": IMAGES, "labels": np.array(list("abab"))},
    r"labels <U1 \[4\]; expected integers",
  ),
  "no labels": ({"images": IMAGES}, "expected an .npz with images and labels"),
  "no images": ({"labels": LABELS}, "has no 'images'"),
  "floats": ({"images": IMAGES / 1.0, "labels": LABELS}, r"images float64 \[4, 32, 32, 1\]; expected uint8"),
  "one axis": ({"images": IMAGES.ravel(), "labels": LABELS}, r"images uint8 \[4096\]"),
  "another size": ({"images": IMAGES[:, 1:], "labels": LABELS}, "are 32x31 pixels and --image 32x32"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_wrong_examples_are_one_line(tmp_path, name):
  arrays, message = EXAMPLES[name]
  np.savez(tmp_path / "S.npz", **arrays)
  with pytest.raises(UserError, match=message) as caught:
    examples(tmp_path / "S.npz")
  assert "\n" not in str(caught.value) and f"--examples {tmp_path}/S.npz" in str(caught.value)


def test_damaged_examples_are_one_line(tmp_path):
  np.savez_compressed(tmp_path / "S.npz", images=IMAGES, labels=LABELS)
  data = (tmp_path / "S.npz").read_bytes()
  for end in range(0, len(data), 7):
    (tmp_path / "S.npz").write_bytes(data[:end])
    with pytest.raises(UserError, match="cannot be read as"):
      examples(tmp_path / "S.npz")
  np.save(tmp_path / "S.npy", IMAGES)
  with pytest.raises(UserError, match=r"S\.npy cannot be read as .npz"):
    examples(tmp_path / "S.npy")


def test_examples_of_sample_are_read(tmp_path):
  np.savez(tmp_path / "S.npz", images=IMAGES, labels=np.array([0, 1, 2, -1]))
  images, flags = examples(tmp_path / "S.npz")
  assert images.shape == (2, 32, 32, 1) and flags.tolist() == [False, True]
