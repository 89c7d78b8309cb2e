"""Pictures from anywhere: the formats of a list alone, damaged metadata, limits before memory is taken."""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import io
import os
from pathlib import Path
import random
import struct
import threading
import tracemalloc

import numpy as np
from PIL import Image, ImageCms
import pytest

from jldm.data import tfds, transforms
from jldm.media import open as opening
from jldm.media.images import read_provenance

EXIF = Path(__file__).parent / "exif"
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)


def decoded(source, form=lambda image: np.asarray(transforms.to_8_bit(image)), **options):
  return opening.decode_picture(source, form, **options)


# ---- formats


@pytest.mark.parametrize(
  "extension", ["jfif", "jpe", "ppm", "pgm", "tga", "avif", "jp2", "mpo", "webp", "tif", "png"]
)
def test_the_extensions_of_decoders_within_the_process(extension):
  assert extension in opening.extensions()


def test_no_extension_of_another_program_or_of_containers_is_among_them():
  assert not {"eps", "ps", "pdf", "wmf", "emf", "psd", "ico", "icns", "fits", "h5", "txt"} & set(
    opening.extensions()
  )
  assert not set(opening.FORMATS) - set(Image.SAVE) - {"MPO"}


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 16 16
%%EndComments
0 0 16 16 rectfill
showpage
%%EOF
"""
OPENERS = {
  "read_picture": lambda path: transforms.read_picture(path),
  "mask": lambda path: transforms.read_picture(path, transforms.to_repaint),
  "provenance": lambda path: read_provenance(path),
  "stored": lambda path: tfds.encoded_size(path.read_bytes(), "x"),
  "decoded": lambda path: tfds.decode_image(
    path.read_bytes(), tfds.ImageData(name="x", height=16, width=16, channels=3)
  ),
}


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.parametrize("name", ["a.png", "a.eps", "a"])
def test_no_opener_starts_ghostscript(tmp_path, monkeypatch, opener, name):
  (tmp_path / "bin").mkdir()
  for program in ("gs", "gswin32c", "gswin64c"):
    fake = tmp_path / "bin" / program
    fake.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 0\n")
    fake.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
  from PIL import EpsImagePlugin

  monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # it is looked for again
  (tmp_path / name).write_bytes(EPS)
  with pytest.raises((ValueError, OSError)) as caught:
    OPENERS[opener](tmp_path / name)
  assert "\n" not in str(caught.value)
  assert not (tmp_path / "ran").exists()
  with contextlib.suppress(Exception):  # of its empty answer
    Image.open(tmp_path / name).load()
  assert (tmp_path / "ran").exists(), "the fake is one that Pillow starts"


def test_no_other_file_opens_pictures():
  root = Path(opening.__file__).parents[1]
  callers = {
    path.relative_to(root).as_posix() for path in root.rglob("*.py") if "Image.open(" in path.read_text()
  }
  assert callers == {"media/open.py"}


# ---- EXIF


@pytest.mark.parametrize("name", sorted(path.name for path in EXIF.iterdir()))
@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Tag data larger")
def test_a_malformed_tag_leaves_the_picture_upright(name):
  with Image.open(EXIF / name) as image:
    stored = np.asarray(image.convert("RGB"))
  np.testing.assert_array_equal(decoded(EXIF / name), np.rot90(stored, -1))
  assert transforms.read_picture(EXIF / name, transforms.measure_picture)[:2] == (16, 8)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_orientation_in_bytes(order, orientation):
  head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
  other = struct.pack(f"{order}HHII", 0x010F, 2, 2**31, 2**31)  # a text beyond the end
  tag = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
  data = head + struct.pack(f"{order}H", 2) + other + tag
  assert opening.find_orientation(data) == opening.find_orientation(b"Exif\0\0" + data) == orientation
  for end in range(len(data)):
    assert opening.find_orientation(data[:end]) in (1, orientation)


@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_never_costs_the_pixels():
  """Sound pixels with a block of metadata in which bytes were changed at random."""
  exif = Image.Exif()
  for tag, value in (
    (0x0112, 6),
    (0x010F, "maker"),
    (0x011A, 72.0),
    (0x9286, b"comment"),
    (0x8825, {1: "N"}),
  ):
    exif[tag] = value
  block, draw = exif.tobytes(), random.Random(0)
  for _ in range(300):
    damaged = bytearray(block)
    for _ in range(draw.randint(1, 6)):
      damaged[draw.randrange(6, len(damaged))] = draw.randrange(256)
    for form in ("JPEG", "PNG", "WEBP"):
      file = io.BytesIO()
      Image.fromarray(PIXELS).save(file, form, exif=bytes(damaged))
      assert decoded(file.getvalue()).size == PIXELS.size


# ---- colour profiles

WIDE = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060))  # x, y of red, green and blue
SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D65, D50 = np.array([0.95047, 1, 1.08883]), np.array([0.9642, 1, 0.8249])


def to_xyz(primaries):
  """The matrix from linear RGB, with a white of D65, to XYZ."""
  columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
  return columns * np.linalg.solve(columns, D65)


def matrix_profile(primaries):
  """An ICC profile (version 2) of the primaries, with the gamma 2.2."""
  adapted = (
    np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ D65)) @ BRADFORD @ to_xyz(primaries)
  )
  fixed = lambda values: b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)
  text = b"test\0"
  tags = {
    b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78),
    b"cprt": b"text\0\0\0\0" + text,
    b"wtpt": fixed(D50),
    **{name: fixed(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), adapted.T)},
    **{
      name: b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) for name in (b"rTRC", b"gTRC", b"bTRC")
    },
  }
  table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
  for name, data in tags.items():
    data += bytes(-len(data) % 4)
    table += name + struct.pack(">II", start + len(body), len(data))
    body += data
  size = start + len(body)
  head = (
    struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
  )
  head = head.ljust(68, b"\0") + b"".join(struct.pack(">i", round(v * 65536)) for v in D50)
  return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def to_srgb(colour, primaries):
  """The same by hand: gamma 2.2, two matrices, and the curve of sRGB."""
  linear = np.linalg.solve(to_xyz(SRGB), to_xyz(primaries) @ (np.array(colour) / 255) ** 2.2).clip(0, 1)
  return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_a_wide_gamut_is_converted_to_srgb(tmp_path):
  colour, path = (60, 200, 60), tmp_path / "a.png"
  Image.new("RGB", (4, 4), colour).save(path, icc_profile=matrix_profile(WIDE))
  came = decoded(path)[0, 0]
  np.testing.assert_allclose(came, to_srgb(colour, WIDE), atol=1.5)
  assert came.tolist() == [0, 201, 37]
  assert transforms.read_picture(path, transforms.measure_picture).notes == (
    "colours to sRGB by their profile",
  )
  Image.new("RGBA", (4, 4), (*colour, 255)).save(path, icc_profile=matrix_profile(WIDE))
  np.testing.assert_array_equal(decoded(path)[0, 0], came)
  layers = transforms.read_picture(path, lambda image: transforms.to_channels(image, 3))
  np.testing.assert_array_equal(layers[0, 0], [*came, 255])
  Image.new("RGB", (4, 4), colour).quantize(2).save(path, icc_profile=matrix_profile(WIDE))
  np.testing.assert_array_equal(decoded(path)[0, 0], came)
  Image.new("RGB", (4, 4), colour).save(path, icc_profile=matrix_profile(WIDE), transparency=(1, 2, 3))
  np.testing.assert_array_equal(decoded(path)[0, 0], came)


def test_a_profile_of_srgb_changes_no_pixel(tmp_path):
  profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
  Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=profile)
  np.testing.assert_array_equal(decoded(tmp_path / "a.png"), PIXELS)
  assert not transforms.read_picture(tmp_path / "a.png", transforms.measure_picture).notes


@pytest.mark.parametrize("profile", [b"no profile", bytes(200), matrix_profile(WIDE)[:150]])
def test_a_profile_that_cannot_be_read_leaves_the_colours_and_is_reported(tmp_path, profile):
  Image.fromarray(PIXELS).save(tmp_path / "a.png", icc_profile=profile)
  np.testing.assert_array_equal(decoded(tmp_path / "a.png"), PIXELS)
  (note,) = transforms.read_picture(tmp_path / "a.png", transforms.measure_picture).notes
  assert "profile cannot be read" in note


# ---- limits


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "fifo.png")
  os.symlink("/dev/zero", tmp_path / "zero.png")
  (tmp_path / "folder.png").mkdir()
  for name, reason in (
    ("fifo", "a FIFO"),
    ("zero", "a device"),
    ("folder", "a folder"),
    ("none", "No such file"),
  ):
    with pytest.raises(ValueError, match=rf"{name}\.png cannot be read as a picture \(.*{reason}"):
      transforms.read_picture(tmp_path / f"{name}.png")


def test_sizes_are_checked_before_anything_is_decoded(tmp_path):
  """A header that claims 40000 x 40000 pixels costs no memory, in any of the openers."""
  chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc(kind + data))
  from zlib import crc32 as crc

  path = tmp_path / "claims.png"
  header = struct.pack(">IIBBBBB", 40000, 40000, 8, 6, 0, 0, 0)
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
  tracemalloc.start()
  for opener in OPENERS.values():
    with pytest.raises((ValueError, OSError), match="1600000000 pixels"):
      opener(path)
  assert tracemalloc.get_traced_memory()[1] < 2**24
  tracemalloc.stop()


def test_large_pictures_in_strips_are_the_same_pictures(monkeypatch):
  levels = np.linspace(0, 1, 96, dtype=np.float32).reshape(8, 12)
  images = [
    Image.fromarray(PIXELS),
    Image.fromarray(np.concatenate([PIXELS, PIXELS[..., :1]], -1)),
    Image.fromarray(levels),
    Image.fromarray((levels * 65535).astype(np.uint16)),
    Image.fromarray(PIXELS).quantize(16),
    Image.fromarray(PIXELS).convert("CMYK"),
  ]
  images[0].info["icc_profile"] = matrix_profile(WIDE)
  whole = [(np.asarray(transforms.to_8_bit(image)), transforms.to_channels(image, 3)) for image in images]
  monkeypatch.setattr(opening, "LARGE", 5)
  monkeypatch.setattr(opening, "STRIP", 36)
  for image, (flat, layers) in zip(images, whole):
    np.testing.assert_array_equal(transforms.to_8_bit(image), flat)
    np.testing.assert_array_equal(transforms.to_channels(image, 3), layers)


def test_large_pictures_are_decoded_one_at_a_time(tmp_path, monkeypatch):
  monkeypatch.setattr(opening, "LARGE", 5)
  Image.fromarray(PIXELS).save(tmp_path / "a.png")
  inside, most, lock = [0], [0], threading.Lock()

  def form(image):
    with lock:
      inside[0] += 1
      most[0] = max(most[0], inside[0])
    image.load()
    threading.Event().wait(0.01)
    with lock:
      inside[0] -= 1

  with ThreadPoolExecutor(4) as pool:
    list(pool.map(lambda _: decoded(tmp_path / "a.png", form), range(12)))
  assert most == [1]


def test_the_limit_of_pillow_is_as_it_was_after_many_threads(tmp_path):
  Image.fromarray(PIXELS).save(tmp_path / "a.png")
  before = Image.MAX_IMAGE_PIXELS
  with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda _: decoded(tmp_path / "a.png"), range(100)))
  assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(5))
def test_damaged_files_are_one_line(seed):
  """Any byte of any format may be wrong: a picture comes, or a reason."""
  draw = random.Random(seed)
  forms = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "JPEG2000", "PCX", "SGI", "QOI")
  for form in forms:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, form)
    data = file.getvalue()
    for _ in range(20):
      damaged = bytearray(data[: draw.choice((len(data), draw.randrange(1, len(data))))])
      for _ in range(draw.randint(0, 4)):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
      try:
        decoded(bytes(damaged), max_pixels=10**6)
      except opening.PictureError as error:
        assert str(error) and "\n" not in str(error)
