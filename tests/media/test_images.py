"""Pictures survive the way to the disk and back, with where they came from; grids put every image
where it belongs.
"""

import json
from pathlib import Path
import sys

import numpy as np
from PIL import Image, ImageSequence
import pytest

from jldm.core.errors import UserError
from jldm.core.files import replace_file
from jldm.media import images as pictures, sheets


def noise(*shape):
  return np.random.default_rng(0).integers(0, 200, shape, np.uint8)  # below PAPER


def test_every_uint8_value_comes_back():
  values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  np.testing.assert_array_equal(pictures.to_uint8(values / np.float32(127.5) - 1), values)


def test_to_uint8_rounds_and_clips():
  images = np.array([-7.0, -1.0, -1 + 1.4 / 255, 0.0, 1.0, 1.01]).reshape(1, 6, 1)
  assert pictures.to_uint8(images).ravel().tolist() == [0, 0, 1, 128, 255, 255]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_to_uint8_refuses_what_is_not_finite(bad):
  images = np.zeros((2, 3, 3, 1))
  images[1, 2, 0] = bad
  with pytest.raises(ValueError, match="1 of 18 values are not finite"):
    pictures.to_uint8(images)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_png_keeps_pixels_and_provenance(tmp_path, channels, mode):
  image, provenance = (
    noise(5, 7, channels),
    {"sampler": "ddim", "steps": 20, "guidance_scale": 2.0, "text": "Zürich"},
  )
  pictures.write_png(tmp_path / "a.png", image, provenance)
  with Image.open(tmp_path / "a.png") as opened:
    assert opened.mode == mode and opened.info["ai_generated"] == "true"
    np.testing.assert_array_equal(np.asarray(opened).reshape(image.shape), image)
  assert pictures.read_provenance(tmp_path / "a.png") == provenance


def test_pictures_of_others_have_no_provenance(tmp_path):
  Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
  assert pictures.read_provenance(tmp_path / "a.png") is None
  (tmp_path / "b.png").write_text("not a picture")
  with pytest.raises(OSError):
    pictures.read_provenance(tmp_path / "b.png")


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
  path = tmp_path / "a.png"
  pictures.write_png(path, noise(4, 4, 1), {"index": 0})
  before = path.read_bytes()
  with pytest.raises(RuntimeError), replace_file(path) as file:
    file.write(b"half")
    raise RuntimeError
  assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_shorter_draw_leaves_no_pictures_of_a_longer_one(tmp_path):
  pictures.write_numbered(tmp_path, noise(3, 4, 4, 1), 3 * [{"seed": 1}])
  Image.fromarray(noise(4, 4)).save(tmp_path / "00007.png")  # somebody else's
  pictures.write_numbered(tmp_path, noise(1, 4, 4, 1), [{"seed": 2}])
  assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "00007.png"]


def test_pictures_of_others_are_never_replaced(tmp_path):
  Image.fromarray(noise(4, 4)).save(tmp_path / "00001.png")
  before = (tmp_path / "00001.png").read_bytes()
  with pytest.raises(UserError, match=r"00001\.png' was not made by jldm"):
    pictures.write_numbered(tmp_path, noise(3, 4, 4, 1), 3 * [{"seed": 1}])
  assert [path.name for path in tmp_path.iterdir()] == ["00001.png"]
  assert (tmp_path / "00001.png").read_bytes() == before


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.npz", "a.mp4"])
def test_every_file_says_how_it_was_made_and_another_s_says_nothing(tmp_path, name):
  origin, images = {"command": "sample", "seed": 7, "text": "Zürich"}, noise(3, 8, 8, 1)
  path = tmp_path / name
  if name == "a.mp4":
    pytest.importorskip("imageio_ffmpeg")
  write = {
    "a.png": lambda: pictures.write_png(path, images[0], origin),
    "a.gif": lambda: pictures.write_gif(path, images, origin),
    "a.npz": lambda: pictures.write_npz(path, images, [0, 1, 2], origin),
    "a.mp4": lambda: pictures.write_mp4(path, images, origin),
  }
  write[name]()
  assert pictures.read_provenance(path) == origin and pictures.is_made_by(path, "sample")
  assert not pictures.is_made_by(path, "edit invert") and pictures.is_made_by(path, "edit invert", True)
  path.write_bytes(path.read_bytes()[:40])
  assert pictures.provenance_or_none(path) is None
  with pytest.raises(UserError, match="was not made by jldm"):
    pictures.check_replaceable([path], overwrite=True)


def test_an_npz_keeps_images_and_labels(tmp_path):
  images, labels = noise(3, 4, 5, 1), [2, -1, 0]
  pictures.write_npz(tmp_path / "a.npz", images, labels)
  with np.load(tmp_path / "a.npz") as stored:
    assert sorted(stored) == ["images", "labels"] and stored["labels"].tolist() == labels
    np.testing.assert_array_equal(stored["images"], images)
  assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize(("pad", "scale"), [(2, 1), (0, 1), (3, 2)])
def test_tile_puts_images_row_by_row(pad, scale):
  images = noise(5, 4, 6, 3)
  sheet = sheets.tile(images, 2, pad, scale)
  assert (
    sheet.shape == (3 * (4 * scale + pad) + pad, 2 * (6 * scale + pad) + pad, 3) and sheet.dtype == np.uint8
  )
  for i, image in enumerate(images):
    top, left = pad + i // 2 * (4 * scale + pad), pad + i % 2 * (6 * scale + pad)
    np.testing.assert_array_equal(
      sheet[top : top + 4 * scale : scale, left : left + 6 * scale : scale], image
    )
  assert (sheet == sheets.PAPER).sum() == sheet.size - images.size * scale**2


def test_class_rows_sorts_by_class_and_leaves_places_empty():
  images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
  sheet = sheets.class_rows(images, np.array([1, 0, 1, 1, 0, 1]), columns=3)[2::3, 2::3, 0]
  assert sheet.tolist() == [[1, 4, sheets.PAPER], [0, 2, 3]]


@pytest.mark.parametrize(("count", "side"), [(1, 1), (7, 3), (9, 3), (50, 4)])
def test_one_class_is_drawn_as_a_square(count, side):
  sheet = sheets.class_rows(np.zeros((count, 1, 1, 1), np.uint8), np.full(count, -1), columns=4)
  assert sheet.shape == (3 * side + 2, 3 * side + 2, 1)


def test_beside_alternates_rows():
  images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
  sheet = sheets.stack_pairs(images, images + 100, columns=3)[2::3, 2::3, 0]
  paper = sheets.PAPER
  assert sheet.tolist() == [[0, 1, 2], [100, 101, 102], [3, 4, paper], [103, 104, paper]]


def test_a_sheet_has_a_row_a_name_beside_it():
  rows = {"source": noise(1, 8, 8, 1), "a longer name": noise(3, 8, 8, 3)}
  sheet = sheets.sheet(rows)
  margin = 8 + 7 * len("a longer name")
  assert sheet.shape == (2 * 66 + 2, margin + 3 * 66 + 2, 3)
  np.testing.assert_array_equal(
    sheet[2:66:8, margin + 2 : margin + 66 : 8], np.repeat(rows["source"][0], 3, -1)
  )
  np.testing.assert_array_equal(sheet[68:132:8, margin + 134 : margin + 198 : 8], rows["a longer name"][2])
  for row in (slice(2, 66), slice(68, 132)):
    assert (sheet[row, :margin] < 128).any(), "something is written"
  assert (sheet[2:66, margin + 68 :] == sheets.PAPER).all()


def test_alpha_is_shown_over_white():
  shown = sheets.as_rgb(np.array([[[10, 255], [10, 0], [10, 51]]], np.uint8))
  assert shown.tolist() == [[[10] * 3, [255] * 3, [206] * 3]]


def test_edits_are_numbered_and_each_is_reported(tmp_path):
  images = noise(2, 8, 8, 2)
  pictures.write_edits(
    tmp_path, images, {"edited": images}, {"edit": "invert"}, [{"share": 0.0}, {"share": 1.0}]
  )
  assert pictures.read_provenance(tmp_path / "00001.png") == {"edit": "invert", "share": 1.0, "index": 1}
  assert pictures.read_provenance(tmp_path / "sheet.png") == {"edit": "invert"}
  with Image.open(tmp_path / "00001.png") as opened:
    assert opened.mode == "LA"
    np.testing.assert_array_equal(np.asarray(opened), images[1])


def test_an_animation_goes_there_and_back(tmp_path):
  images = np.stack([np.full((8, 8, 1), level, np.uint8) for level in (0, 100, 200)])
  pictures.write_gif(tmp_path / "a.gif", images, {"edit": "interpolate"})
  with Image.open(tmp_path / "a.gif") as opened:
    frames = [np.asarray(frame.convert("L"))[0, 0] for frame in ImageSequence.Iterator(opened)]
    assert opened.size == (64, 64) and json.loads(opened.info["comment"])["jldm"] == {"edit": "interpolate"}
  np.testing.assert_allclose(frames, [0, 100, 200, 100], atol=1)


@pytest.mark.parametrize("count", [1, 2, 3, 9, 50, 101, 102, 103, 211, 300, 1000])
def test_an_animation_plays_as_long_as_it_says(tmp_path, count):
  """No delay is under 2 hundredths, which browsers play as 10; each way lasts 2 s and has both ends."""
  images = np.linspace(0, 255, count).astype(np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
  pictures.write_gif(tmp_path / "a.gif", images, {})
  with Image.open(tmp_path / "a.gif") as opened:
    frames = [(frame.info["duration"], np.asarray(frame.convert("L"))[0, 0]) for frame in
              ImageSequence.Iterator(opened)]  # fmt: skip
  delays, levels = zip(*frames)
  assert min(delays) >= 20 and not any(delay % 10 for delay in delays)
  whole = 2000 * max(2 * count - 2, 1) / count
  assert abs(sum(delays) - whole) <= 10
  assert min(levels) == 0 and max(levels) == images.max()


def test_a_film_needs_imageio(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
  with pytest.raises(UserError, match="install them: pip install 'jldm"):
    pictures.write_mp4(tmp_path / "a.mp4", noise(3, 8, 8, 1), {})


def test_a_film_has_the_frames(tmp_path):
  imageio = pytest.importorskip("imageio.v2")
  pytest.importorskip("imageio_ffmpeg")
  images = np.stack([np.full((9, 8, 1), level, np.uint8) for level in (0, 100, 200)])
  pictures.write_mp4(tmp_path / "a.mp4", images, {"edit": "interpolate"})
  frames = np.stack(imageio.mimread(tmp_path / "a.mp4"))
  assert frames.shape == (4, 72, 64, 3)
  np.testing.assert_allclose(frames.mean((1, 2, 3)), [0, 100, 200, 100], atol=3)
  assert b"interpolate" in (tmp_path / "a.mp4").read_bytes()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(), (1,), (5,)])
def test_show_makes_one_picture_that_a_notebook_displays(channels, shape):
  shown = sheets.show(noise(*shape, 8, 6, channels))
  count = shape[0] if shape else 1
  assert shown.mode == "RGB" and shown.size == (count * (6 * 11 + 2) + 2, 8 * 11 + 4)
  assert shown._repr_png_().startswith(b"\x89PNG")


def test_show_puts_images_row_by_row_with_their_own_pixels():
  images = noise(3, 70, 80, 3)
  shown = np.asarray(sheets.show(images, columns=2))
  assert shown.shape == (2 * 72 + 2, 2 * 82 + 2, 3)
  np.testing.assert_array_equal(shown[2:72, 84:164], images[1])
  np.testing.assert_array_equal(shown[74:144, 2:82], images[2])
  assert (shown[74:144, 84:164] == sheets.PAPER).all()


def test_show_takes_a_list_of_images_and_batches_of_several_sizes():
  one, two = noise(64, 64, 1), noise(2, 70, 90, 3)
  shown = np.asarray(sheets.show([one, two]))
  assert shown.shape == (74, 3 * 92 + 2, 3)
  np.testing.assert_array_equal(shown[2:66, 2:66], np.broadcast_to(one, (64, 64, 3)))
  np.testing.assert_array_equal(shown[2:72, 186:276], two[1])


def test_show_writes_labels_below_their_images():
  images = noise(2, 64, 64, 3)
  shown = np.asarray(sheets.show(images, labels=["a cat", 7]))
  assert shown.shape == (64 + sheets.TEXT_HEIGHT + 4, 2 * 66 + 2, 3)
  np.testing.assert_array_equal(shown[2:66, 2:66], images[0])
  below = shown[66:-2]
  assert (below[:, 2:66] < 100).any() and (below[:, 68:132] < 100).any()
  blank = np.asarray(sheets.show(images, labels=["", ""]))[66:]
  assert (blank == sheets.PAPER).all()


@pytest.mark.parametrize(
  ("images", "options", "text"),
  [
    (
      np.zeros((2, 8, 8, 3), np.float32),
      {},
      "images of float32; expected uint8; if they lie in [-1, 1], convert them by",
    ),
    (np.zeros((2, 8, 8, 3), np.int32), {}, "images of int32; expected uint8, 0 to 255"),
    ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3))], {}, "images of float64; expected uint8"),
    (np.zeros((8, 8), np.uint8), {}, "images of shape [8, 8]; expected [N, H, W, C] or [H, W, C]"),
    (np.zeros((2, 8, 8, 5), np.uint8), {}, "images of shape [2, 8, 8, 5]"),
    (np.zeros((2, 0, 8, 3), np.uint8), {}, "images of shape [2, 0, 8, 3]"),
    (np.zeros((0, 8, 8, 3), np.uint8), {}, "no images"),
    ([], {}, "no images"),
    (np.zeros((2, 8, 8, 3), np.uint8), {"columns": 0}, "columns=0; expected at least 1"),
    (np.zeros((2, 8, 8, 3), np.uint8), {"labels": ["a"]}, "1 labels of 2 images"),
  ],
)
def test_show_refuses_in_one_line(images, options, text):
  with pytest.raises(UserError) as error:
    sheets.show(images, **options)
  assert text in str(error.value) and "\n" not in str(error.value)


def test_a_film_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
  imageio = pytest.importorskip("imageio.v2")
  pytest.importorskip("imageio_ffmpeg")
  (tmp_path / "a.mp4").write_text("old")

  def half(path, *_, **__):
    Path(path).write_text("half")
    raise ZeroDivisionError

  monkeypatch.setattr(imageio, "mimwrite", half)
  with pytest.raises(ZeroDivisionError):
    pictures.write_mp4(tmp_path / "a.mp4", noise(3, 8, 8, 1), {})
  assert (tmp_path / "a.mp4").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_space_in_a_row_s_name_is_seen():
  """The widest gap between columns of letters is twice that within a word."""

  def widest_gap(name):
    margin = sheets.sheet({name: np.zeros((1, 64, 64, 1), np.uint8)})[:, : 8 + 7 * len(name)]
    inked = np.flatnonzero((margin < 128).any((0, 2)))
    return np.diff(inked).max()

  assert widest_gap("strength 0.5") >= 2 * widest_gap("strength")
