import re
import warnings

import numpy as np
from PIL import Image
import pytest

from jldm.core.errors import UserError
from jldm.data.transforms import pad_black, read_picture, resize_to_cover, to_8_bit, to_channels

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)


def saved(path, image, **options):
  image.save(path, **options)
  return read_picture(path)


def colours(image):
  return image.mode, np.asarray(image).tolist()


@pytest.mark.parametrize("image", [Image.fromarray(PIXELS), Image.fromarray(PIXELS[..., 0])])
def test_8_bit_grey_and_colour_are_kept(image):
  assert colours(to_8_bit(image)) == colours(image)


def test_16_bit_grey_spans_8_bits(tmp_path):
  levels = np.array([[0, 128, 129, 257 * 77, 65535]], np.uint16)
  for image in (Image.fromarray(levels), Image.fromarray(levels.astype(np.int32))):
    assert image.mode in ("I;16", "I")
    assert colours(to_8_bit(image)) == ("L", [[0, 0, 1, 77, 255]])
  assert colours(saved(tmp_path / "a.png", Image.fromarray(levels))) == ("L", [[0, 0, 1, 77, 255]])
  assert colours(saved(tmp_path / "a.tif", Image.fromarray(levels))) == ("L", [[0, 0, 1, 77, 255]])


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    ([0, 0.2, 1, 1.02], [0, 51, 255, 255]),  # case 14: such levels were read as 0 ... 255, black
    ([-1, -0.2, 0.6, 1], [0, 102, 204, 255]),  # and of these the lower half was cut
    ([0, 51, 256], [0, 51, 255]),
  ],
)
def test_the_range_of_floats_may_be_exceeded_a_little_or_be_symmetric(values, expected):
  assert colours(to_8_bit(Image.fromarray(np.array([values], np.float32)))) == ("L", [expected])


@pytest.mark.parametrize(("low", "high"), [(-30, 70), (0, 1e6), (-1e30, 1e30), (-1, 2), (-2.1, 2.6)])
def test_other_floats_are_refused(tmp_path, low, high):
  with pytest.raises(
    UserError, match=rf"f\.tif.*{re.escape(f'{low:g} ... {high:g}')}; expected 0 ... 1, -1 ... 1, "
  ):
    saved(tmp_path / "f.tif", Image.fromarray(np.array([[low, high]], np.float32)))


def test_32_bit_levels_beyond_16_bits_are_refused(tmp_path):
  with pytest.raises(UserError, match=r"f\.tif.*-5 ... 70000; expected 0 ... 65535"):
    saved(tmp_path / "f.tif", Image.fromarray(np.array([[-5, 70000]], np.int32)))


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_float_grey_spans_8_bits(white):
  image = Image.fromarray(np.array([[-0.1, 0, 0.2, 1]], np.float32) * white)
  assert colours(to_8_bit(image)) == ("L", [[0, 0, 51, 255]])


def test_float_grey_that_is_not_finite_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"nan\.tif.*not finite"):
    saved(tmp_path / "nan.tif", Image.fromarray(np.array([[0, np.nan]], np.float32)))


def test_one_bit_becomes_grey():
  assert colours(to_8_bit(Image.fromarray(np.array([[True, False]])))) == ("L", [[255, 0]])


def test_cmyk_becomes_rgb():
  inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
  expected = [[[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]]]
  assert colours(to_8_bit(Image.fromarray(inks, "CMYK"))) == ("RGB", expected)


def test_transparency_is_composited_over_white():
  rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 255, 51]]], np.uint8)
  assert colours(to_8_bit(Image.fromarray(rgba))) == (
    "RGB",
    [[[10, 20, 30], [255, 255, 255], [204, 224, 255]]],
  )
  grey = np.array([[[10, 255], [10, 0], [0, 51]]], np.uint8)
  assert colours(to_8_bit(Image.fromarray(grey, "LA"))) == ("L", [[10, 255, 204]])


def test_palettes_become_rgb_and_their_transparent_colour_white(tmp_path):
  image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
  image.putpalette([1, 2, 3, 40, 50, 60, 70, 80, 90])
  assert colours(to_8_bit(image)) == ("RGB", [[[1, 2, 3], [40, 50, 60], [70, 80, 90]]])
  expected = [[[1, 2, 3], [255, 255, 255], [70, 80, 90]]]
  assert colours(saved(tmp_path / "p.png", image, transparency=1)) == ("RGB", expected)
  assert colours(saved(tmp_path / "p.gif", image, transparency=1)) == ("RGB", expected)


def test_one_transparent_colour_becomes_white(tmp_path):
  image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
  assert colours(saved(tmp_path / "a.png", image, transparency=(4, 5, 6))) == (
    "RGB",
    [[[1, 2, 3], [255, 255, 255]]],
  )


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif", "a.webp"])
def test_the_first_frame_of_an_animation_is_taken(tmp_path, name):
  red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
  red.save(
    tmp_path / name, save_all=True, append_images=[blue], **({"lossless": True} if "webp" in name else {})
  )
  with Image.open(tmp_path / name) as image:
    assert image.n_frames == 2
    image.seek(1)
    assert np.asarray(to_8_bit(image)).reshape(-1, 3).tolist() == [[255, 0, 0]] * 16
  assert np.asarray(read_picture(tmp_path / name)).reshape(-1, 3).tolist() == [[255, 0, 0]] * 16


UPRIGHT = {
  1: lambda a: a,
  2: np.fliplr,
  3: lambda a: np.rot90(a, 2),
  4: np.flipud,
  5: lambda a: a.swapaxes(0, 1),
  6: lambda a: np.rot90(a, -1),
  7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
  8: np.rot90,
}


@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied(tmp_path, orientation, extension):
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {"lossless": True} if extension == "webp" else {}
  image = saved(tmp_path / f"a.{extension}", Image.fromarray(PIXELS), exif=exif, **options)
  np.testing.assert_array_equal(np.asarray(image), UPRIGHT[orientation](PIXELS))


@pytest.mark.parametrize(
  ("size", "covering", "corner"), [((10, 10), (20, 10), (0, 5)), ((8, 24), (24, 12), (2, 0))]
)
def test_fit_covers_then_cuts_the_centre(size, covering, corner):
  image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 12, 3), dtype=np.uint8))
  large = np.asarray(image.resize(covering, Image.Resampling.BICUBIC)).astype(
    int
  )  # PIL's sizes are (width, height)
  top, left = corner
  np.testing.assert_allclose(
    resize_to_cover(image, size), large[top : top + size[0], left : left + size[1]], atol=1
  )


def test_fit_is_bicubic():
  image = Image.fromarray(PIXELS)
  np.testing.assert_array_equal(resize_to_cover(image, (3, 5)), PIXELS)
  np.testing.assert_array_equal(
    resize_to_cover(image, (6, 10)), image.resize((10, 6), Image.Resampling.BICUBIC)
  )


@pytest.mark.parametrize("pixels", [PIXELS, PIXELS[..., 0]])
def test_pad_adds_black_on_each_side(pixels):
  padded = np.asarray(pad_black(Image.fromarray(pixels), 2))
  assert padded.shape[:2] == (7, 9)
  np.testing.assert_array_equal(padded[2:-2, 2:-2], pixels)
  assert padded.sum() == pixels.sum()


def test_a_truncated_png_is_named(tmp_path):
  path = tmp_path / "cut.png"
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
  path.write_bytes(path.read_bytes()[:5000])
  with pytest.raises(
    UserError, match=r"cut\.png cannot be read as a picture \(.*truncated.*\); replace or remove it"
  ):
    read_picture(path)


def test_a_text_file_is_named(tmp_path):
  path = tmp_path / "text.png"
  path.write_text("hello\n" * 100)
  with pytest.raises(UserError, match=r"text\.png cannot be read as a picture \(unknown format\)"):
    read_picture(path)


def test_a_decompression_bomb_is_named(tmp_path):
  path = tmp_path / "bomb.png"
  Image.new("L", (100, 100)).save(path)
  before = Image.MAX_IMAGE_PIXELS
  for limit in (1000, 4999, 5001, 9999):  # Pillow refuses at twice its limit, and warns from it on
    with (
      warnings.catch_warnings(),
      pytest.raises(
        UserError,
        match=rf"bomb\.png cannot be read as a picture \(10000 pixels, .*max_pixels={limit};.*--max-pixels",
      ) as caught,
    ):
      warnings.simplefilter("error")
      warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, module=r"PIL\.")
      read_picture(path, max_pixels=limit)
    assert "\n" not in str(caught.value)
  assert read_picture(path, max_pixels=10000).size == (100, 100)
  assert before == Image.MAX_IMAGE_PIXELS, "the limit of other users of Pillow is as it was"


def test_the_limit_may_be_raised(tmp_path, monkeypatch):
  path = tmp_path / "large.png"
  Image.new("L", (100, 100)).save(path)
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
  assert read_picture(path).size == (100, 100)


def test_layers_have_alpha_where_the_picture_has():
  colours = np.random.default_rng(0).integers(0, 256, (3, 4, 4), np.uint8)
  clear = Image.fromarray(colours)
  np.testing.assert_array_equal(to_channels(clear, 3), colours)
  grey = to_channels(clear, 1)
  np.testing.assert_array_equal(grey[..., 1], colours[..., 3])
  np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(colours[..., :3]).convert("L")))
  opaque = Image.fromarray(colours[..., :3])
  assert to_channels(opaque, 1).shape == (3, 4, 1) and to_channels(opaque.convert("L"), 3).shape == (3, 4, 3)
  palette = opaque.quantize(4)
  palette.info["transparency"] = 0
  assert to_channels(palette, 3).shape == (3, 4, 4) and set(to_channels(palette, 3)[..., 3].ravel()) <= {
    0,
    255,
  }
  assert to_channels(Image.fromarray(np.full((3, 4), 65535, np.uint16)), 1).max() == 255


def test_layers_are_upright():
  image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
  image.getexif()[0x0112] = 6
  np.testing.assert_array_equal(to_channels(image, 1)[..., 0], np.rot90(np.arange(12).reshape(3, 4), -1))
