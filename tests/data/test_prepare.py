import gzip
import json
import os
import struct
import sys

import numpy as np
from PIL import Image
import pytest
from sklearn.datasets import load_digits

from jldm.core.errors import UserError
from jldm.data import prepare as prepare_module, tfds, transforms
from jldm.data.contents import SourceOptions
from jldm.data.prepare import KINDS, prepare
from jldm.media import open as opening

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 0, 1, 1, 2, 0, 3])


def by_content(images, labels):
  """Examples whatever their order."""
  return sorted(
    (int(label), np.asarray(image).tobytes()) for image, label in zip(images, labels, strict=True)
  )


def save(path, pixels, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **options)


def photographs(root, shape=(8, 12, 3)):
  """Two classes of two pictures -> their pixels by label."""
  pixels = RANDOM.integers(0, 256, (4, *shape), dtype=np.uint8)
  for number, name in enumerate(("cat/b.png", "cat/a.PNG", "ant/deep/x.bmp", "ant/y.tiff")):
    save(root / name, pixels[number])
  return pixels, [1, 1, 0, 0]


# ---- digits


def test_digits_are_the_bicubic_ones(digits_dir, everything):
  real = load_digits()
  large = [
    np.asarray(Image.fromarray(np.float32(image * 255 / 16)).resize((32, 32), Image.Resampling.BICUBIC))
    for image in real.images
  ]
  expected = np.clip(np.rint(large), 0, 255).astype(np.uint8)[..., None]
  batch = everything(digits_dir, "digits", classes=10)
  assert by_content(batch["image"], batch["label"]) == by_content(expected, real.target)
  small = batch["image"].reshape(1797, 8, 4, 8, 4).mean((2, 4)) * 16 / 255
  mean, real_mean = (
    np.mean([images[labels == digit].mean(0) for digit in range(10)], axis=0)
    for images, labels in ((small, batch["label"]), (real.images, real.target))
  )
  assert np.abs(mean - real_mean).max() < 1  # of 16: upright, unshifted and to scale


def test_digits_are_mixed_and_whole_on_disk(digits_dir, everything):
  labels = everything(digits_dir, "digits", split="train[:10%]", classes=10)["label"]
  assert (np.bincount(labels, minlength=10) > 5).all()
  assert sorted(path.name for path in (digits_dir / "digits" / "1.0.0").iterdir()) == [
    "dataset_info.json",
    "digits-train.array_record-00000-of-00001",
    "features.json",
    "metadata.json",
  ]
  assert [path.name for path in digits_dir.iterdir()] == ["digits"]
  metadata = json.loads((digits_dir / "digits" / "1.0.0" / "metadata.json").read_text())
  counts = np.bincount(load_digits().target).tolist()
  assert metadata == {"classes": [str(digit) for digit in range(10)], "counts": {"train": counts}}
  assert "tensorflow" not in sys.modules


def test_digits_take_no_source(tmp_path):
  with pytest.raises(UserError, match="leave it out"):
    prepare("digits", tmp_path, "digits", tmp_path)


# ---- folder


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path, everything):
  pixels, labels = photographs(tmp_path / "photos")
  for ignored in ("cat/notes.txt", "cat/._a.png", ".trash/z.png", "readme.md"):
    (tmp_path / "photos" / ignored).parent.mkdir(exist_ok=True)
    (tmp_path / "photos" / ignored).write_text("no picture")
  folder = prepare("folder", tmp_path / "photos", "pets", tmp_path / "data")
  assert folder == tmp_path / "data" / "pets" / "1.0.0"
  metadata = json.loads((folder / "metadata.json").read_text())
  assert metadata["classes"] == ["ant", "cat"] and metadata["counts"] == {"train": [2, 2]}
  assert metadata["left_out"] == {
    "hidden": {"count": 2, "first": [".trash", "cat/._a.png"]},
    "with the extension .md, which is not read": {"count": 1, "first": ["readme.md"]},
    "with the extension .txt, which is not read": {"count": 1, "first": ["cat/notes.txt"]},
  }
  batch = everything(tmp_path / "data", "pets", height=8, width=12, channels=3, classes=2)
  assert by_content(batch["image"], batch["label"]) == by_content(pixels, labels)


def test_a_flat_folder_is_unlabelled(tmp_path, everything):
  for number in range(3):
    save(tmp_path / "photos" / f"{number}.png", GREY[number])
  folder = prepare("folder", tmp_path / "photos", "flat", tmp_path)
  assert json.loads((folder / "metadata.json").read_text()) == {"classes": [], "counts": {"train": []}}
  batch = everything(tmp_path, "flat", height=28, width=28)
  assert by_content(batch["image"], batch["label"]) == by_content(GREY[:3], [-1] * 3)


@pytest.mark.parametrize("extension", opening.extensions())
def test_every_extension_is_read(tmp_path, extension):
  pixels = GREY[0] if extension != "qoi" else GREY[:3].transpose(1, 2, 0).copy()
  save(tmp_path / f"a.{extension.upper()}", pixels)
  (example,) = KINDS["folder"](SourceOptions(tmp_path)).splits["train"]
  assert example.load().size == (28, 28) and example.measure()[:2] == (28, 28)


def test_a_folder_is_listed_without_decoding(tmp_path, monkeypatch):
  photographs(tmp_path)
  monkeypatch.setattr(transforms, "read_picture", lambda *args: pytest.fail("decoded"))
  assert len(KINDS["folder"](SourceOptions(tmp_path)).splits["train"]) == 4


def test_pictures_are_converted_and_cut_to_size(tmp_path, everything):
  exif = Image.Exif()
  exif[0x0112] = 6
  save(tmp_path / "photos" / "turned.png", RANDOM.integers(0, 256, (20, 9, 3), dtype=np.uint8), exif=exif)
  save(tmp_path / "photos" / "deep.png", RANDOM.integers(0, 65536, (30, 30), dtype=np.uint16))
  prepare("folder", tmp_path / "photos", "cut", tmp_path, size=(6, 10), pad=1)
  images = everything(tmp_path, "cut", height=8, width=12, channels=3)["image"]
  expected = [
    transforms.resize_to_cover(transforms.read_picture(path), (6, 10)).convert("RGB")
    for path in (tmp_path / "photos").iterdir()
  ]
  assert by_content(images[:, 1:-1, 1:-1], [0, 0]) == by_content(expected, [0, 0])
  assert images[:, 1:-1, 1:-1].sum() == images.sum()


@pytest.mark.parametrize(
  ("grey", "channels", "expected"), [(True, None, 1), (True, 3, 3), (False, None, 3), (False, 1, 1)]
)
def test_channels(tmp_path, everything, grey, channels, expected):
  for name, pixels in (
    ("a", GREY[0]),
    ("b", GREY[1] if grey else GREY[:3].transpose(1, 2, 0).copy()),
    ("c", GREY[2]),
  ):
    save(tmp_path / "photos" / f"{name}.png", pixels)
  prepare("folder", tmp_path / "photos", "some", tmp_path, channels=channels)
  assert everything(tmp_path, "some", height=28, width=28, channels=expected)["image"].shape == (
    3,
    28,
    28,
    expected,
  )


def test_pictures_are_cut_to_the_bucket_of_the_nearest_ratio(tmp_path):
  for name, shape in (("square", (30, 28)), ("wide", (12, 21)), ("tall", (40, 11))):
    save(tmp_path / "photos" / f"{name}.png", RANDOM.integers(0, 256, shape, dtype=np.uint8))
  folder = prepare(
    "folder", tmp_path / "photos", "cut", tmp_path, size=(8, 8), buckets=((6, 10), (12, 4)), pad=1
  )
  metadata = json.loads((folder / "metadata.json").read_text())
  assert metadata["shapes"] == [[10, 10], [8, 12], [14, 6]]
  assert metadata["classes"] == [] and "converted" not in metadata
  data = tfds.ImageData(name="cut", data_dir=str(tmp_path), height=10, width=10, buckets=((8, 12), (14, 6)))
  for part, name, size in zip(
    data.open("train").sources, ("square", "wide", "tall"), ((8, 8), (6, 10), (12, 4)), strict=True
  ):
    (image,) = part.arrays["image"][..., 0]
    expected = np.asarray(
      transforms.resize_to_cover(transforms.read_picture(tmp_path / "photos" / f"{name}.png"), size)
    )
    np.testing.assert_array_equal(image, np.pad(expected, 1))


def test_pictures_of_two_sizes_are_both_named(tmp_path):
  save(tmp_path / "photos" / "a.png", GREY[0])
  save(tmp_path / "photos" / "b.png", GREY[1, :20])
  with pytest.raises(UserError, match=r"a\.png' is 28x28 and '.*b\.png' 20x28 .*--size 28x28"):
    prepare("folder", tmp_path / "photos", "some", tmp_path / "data")
  assert not (tmp_path / "data").exists()


def broken(name, data):
  def make(root):
    photographs(root)
    (root / "cat" / name).write_bytes(data)

  return make


def mixed(root):
  photographs(root)
  save(root / "stray.png", GREY[0])


def empty_class(root):
  photographs(root)
  (root / "bee").mkdir()


MISTAKES = {
  "missing": (lambda root: None, "does not exist"),
  "file": (lambda root: root.write_text("x"), "is something else"),
  "empty": (lambda root: root.mkdir(), "holds no pictures; expected apng, png, .*jpg.*webp"),
  "empty class": (empty_class, "bee' holds no pictures"),
  "mixed": (mixed, "'stray.png'.*next to sub-folders.*'ant'"),
  "text": (broken("text.png", b"hello"), r"text\.png cannot be read as a picture \(unknown format\)"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_folder_is_one_line_and_leaves_nothing(tmp_path, make, message):
  make(tmp_path / "photos")
  with pytest.raises(UserError, match=message) as caught:
    prepare("folder", tmp_path / "photos", "pets", tmp_path / "data")
  assert "\n" not in str(caught.value) and not (tmp_path / "data").exists()


def test_a_truncated_png_is_named_and_leaves_nothing(tmp_path):
  photographs(tmp_path / "photos", shape=(64, 64, 3))
  path = tmp_path / "photos" / "cat" / "b.png"
  path.write_bytes(path.read_bytes()[:6000])
  with pytest.raises(UserError, match=r"b\.png cannot be read"):
    prepare("folder", tmp_path / "photos", "pets", tmp_path / "data")
  assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt, OSError])
def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch, error):
  photographs(tmp_path / "photos")
  calls = []

  def read(path, form, max_pixels):
    calls.append(path)
    if len(calls) > 6:
      raise error("in the second pass")
    return form(Image.new("L", (8, 8)))

  monkeypatch.setattr(transforms, "read_picture", read)
  with pytest.raises(
    KeyboardInterrupt if error is KeyboardInterrupt else UserError, match="in the second pass"
  ):
    prepare("folder", tmp_path / "photos", "pets", tmp_path / "data")
  assert len(calls) > 6 and not list((tmp_path / "data").iterdir())


def test_the_remains_of_a_killed_run_do_not_matter(tmp_path):
  save(tmp_path / "photos" / "a.png", GREY[0])
  (tmp_path / ".pets.partial" / "1.0.0").mkdir(parents=True)
  (tmp_path / ".pets.partial" / "half").write_text("half")
  folder = prepare("folder", tmp_path / "photos", "pets", tmp_path)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["pets", "photos"]
  assert [path.name for path in folder.parent.iterdir()] == ["1.0.0"]


# ---- idx


def write_idx(root, compress=False, **changes):
  root.mkdir()
  for stem, images, labels in (("train", GREY[:5], LABELS[:5]), ("t10k", GREY[5:], LABELS[5:])):
    for name, array in (
      (f"{stem}-images-idx3-ubyte", images),
      (f"{stem}-labels-idx1-ubyte", labels.astype(np.uint8)),
    ):
      data = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
      data = changes.get(name, lambda data: data)(data)
      if data is not None:
        (root / (name + ".gz" * compress)).write_bytes(gzip.compress(data) if compress else data)


@pytest.mark.parametrize("compress", [False, True])
def test_idx_padded_to_32(tmp_path, everything, compress):
  write_idx(tmp_path / "files", compress)
  prepare("idx", tmp_path / "files", "mnist", tmp_path, pad=2)
  expected = np.pad(GREY, ((0, 0), (2, 2), (2, 2)))
  for split, rows in (("train", slice(0, 5)), ("test", slice(5, None))):
    batch = everything(tmp_path, "mnist", split=split, classes=4)
    assert batch["image"].shape[1:] == (32, 32, 1)
    assert by_content(batch["image"], batch["label"]) == by_content(expected[rows], LABELS[rows])


IMAGES, IDX_LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
IDX_MISTAKES = {
  "missing file": (
    {IDX_LABELS: lambda data: None},
    "has no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz",
  ),
  "short": (
    {IMAGES: lambda data: data[:-1]},
    f"{IMAGES}' has 3919 bytes of data; expected 3920 for shape .5, 28, 28.",
  ),
  "long": ({IMAGES: lambda data: data + b"x"}, "has 3921 bytes of data; expected 3920"),
  "no header": ({IMAGES: lambda data: data[:10]}, "begins with 00000803"),
  "empty file": ({IMAGES: lambda data: b""}, "begins with nothing"),
  "type": ({IMAGES: lambda data: b"\0\0\x0d\3" + data[4:]}, "begins with 00000d03; expected 00000803"),
  "rank": (
    {IDX_LABELS: lambda data: b"\0\0\x08\3" + data[4:]},
    "-ubyte' begins with 00000803; expected 00000801",
  ),
  "count": ({IDX_LABELS: lambda data: data[:4] + b"\0\0\0\1" + data[8:9]}, "2 images and 1 labels in t10k"),
  "gzip": ({IMAGES: lambda data: gzip.compress(data)[:-20]}, f"{IMAGES}' cannot be read"),
}


@pytest.mark.parametrize(("changes", "message"), IDX_MISTAKES.values(), ids=IDX_MISTAKES)
def test_wrong_idx_files_are_named(tmp_path, changes, message):
  write_idx(tmp_path / "mnist", **changes)
  with pytest.raises(UserError, match=message):
    prepare("idx", tmp_path / "mnist", "mnist", tmp_path / "data")
  assert not (tmp_path / "data").exists()


# ---- npz


@pytest.mark.parametrize(("shape", "channels"), [((6, 5, 4), 1), ((6, 5, 4, 1), 1), ((6, 5, 4, 3), 3)])
@pytest.mark.parametrize("labels", [None, [0, 1, -1, 2, 2, 0]])
def test_npz(tmp_path, everything, shape, channels, labels):
  images = RANDOM.integers(0, 256, shape, dtype=np.uint8)
  np.savez(tmp_path / "a.npz", images=images, **({"labels": labels} if labels else {}))
  prepare("npz", tmp_path / "a.npz", "some", tmp_path)
  batch = everything(tmp_path, "some", height=5, width=4, channels=channels, classes=3 if labels else 0)
  assert by_content(batch["image"], batch["label"]) == by_content(images, labels or [-1] * 6)


NPZ_MISTAKES = {
  "no images": ({"pictures": GREY}, "has no 'images'"),
  "floats": ({"images": GREY / 255}, r"images float64 \[7, 28, 28\]; expected uint8"),
  "rank": ({"images": GREY[0]}, r"images uint8 \[28, 28\]"),
  "four channels": ({"images": GREY[..., None].repeat(4, -1)}, r"images uint8 \[7, 28, 28, 4\]"),
  "none": ({"images": GREY[:0]}, r"images uint8 \[0, 28, 28\]"),
  "label count": ({"images": GREY, "labels": LABELS[:3]}, r"labels int64 \[3\]; expected integers \[7\]"),
  "label type": ({"images": GREY, "labels": LABELS / 2}, "labels float64"),
  "label range": ({"images": GREY, "labels": LABELS - 2}, r"from -1 \(unknown\) up"),
  "pickle": ({"images": np.array([None])}, "without pickle"),
}


@pytest.mark.parametrize(("arrays", "message"), NPZ_MISTAKES.values(), ids=NPZ_MISTAKES)
def test_wrong_npz_files_are_refused(tmp_path, arrays, message):
  np.savez(tmp_path / "a.npz", **arrays)
  with pytest.raises(UserError, match=message):
    prepare("npz", tmp_path / "a.npz", "some", tmp_path / "data")
  assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\3\4 and no more"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, data):
  (tmp_path / "a.npz").write_bytes(data)
  with pytest.raises(UserError, match=r"a\.npz' cannot be read as \.npz"):
    prepare("npz", tmp_path / "a.npz", "some", tmp_path / "data")


def test_a_plain_npy_is_refused(tmp_path):
  np.save(tmp_path / "a.npy", GREY)
  with pytest.raises(UserError, match=r"a\.npy' cannot be read as \.npz"):
    prepare("npz", tmp_path / "a.npy", "some", tmp_path / "data")


# ---- requests

REQUESTS = {
  "kind": (
    {"kind": "tar"},
    r"kind='tar'; expected one of \['clothes', 'digits', 'emoji', 'folder', 'idx', 'npz', 'photos'\]",
  ),
  "name": ({"name": "../a"}, "name='../a'; expected letters"),
  "size": ({"size": (0, 8)}, "size=0x8; expected HEIGHTxWIDTH"),
  "pad": ({"pad": -1}, "pad=-1"),
  "channels": ({"channels": 4}, "channels=4; expected 1"),
  "buckets alone": ({"buckets": ((4, 8),)}, "buckets=4x8 with no size; expected one --size"),
  "buckets twice": (
    {"size": (8, 8), "buckets": ((4, 8), (4, 8))},
    "buckets=4x8, 4x8 with size=8x8; .*differ",
  ),
  "bucket as size": ({"size": (8, 8), "buckets": ((8, 8),)}, "buckets=8x8 with size=8x8"),
  "empty bucket": ({"size": (8, 8), "buckets": ((8, 0),)}, "buckets=8x0 with size=8x8"),
  "no source": ({"kind": "folder"}, "no source; prepare folder expects a folder of pictures.*--source"),
}


@pytest.mark.parametrize(("changes", "message"), REQUESTS.values(), ids=REQUESTS)
def test_a_wrong_request_is_one_line(tmp_path, changes, message):
  with pytest.raises(UserError, match=message):
    prepare(**({"kind": "digits", "source": None, "name": "digits", "data_dir": tmp_path} | changes))
  assert not list(tmp_path.iterdir())


def test_an_existing_data_set_is_kept(digits_dir):
  before = {path: path.stat().st_mtime_ns for path in digits_dir.rglob("*")}
  with pytest.raises(UserError, match=r"'digits' is already in .*another --name, delete .*--if-missing"):
    prepare("digits", None, "digits", digits_dir)
  assert prepare("digits", None, "digits", digits_dir, exist_ok=True) == digits_dir / "digits" / "1.0.0"
  assert {path: path.stat().st_mtime_ns for path in digits_dir.rglob("*")} == before


def test_what_is_no_data_set_is_left_alone(tmp_path):
  save(tmp_path / "photos" / "a.png", GREY[0])
  for exist_ok in (False, True):
    with pytest.raises(
      UserError, match="photos' exists and is not a data set; choose another --name or --data-dir"
    ):
      prepare("folder", tmp_path / "photos", "photos", tmp_path, exist_ok=exist_ok)
  assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]


def test_a_data_dir_under_a_file_cannot_be_written(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(
    UserError, match=r"data_dir='.*file/data' cannot be written to; choose another --data-dir"
  ):
    prepare("digits", None, "digits", tmp_path / "file" / "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_data_dir_cannot_be_written(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(UserError, match="cannot be written to"):
    prepare("digits", None, "digits", tmp_path)


def test_a_disk_that_refuses_is_one_line(tmp_path, monkeypatch):
  def full(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(prepare_module.os, "rename", full)
  save(tmp_path / "photos" / "a.png", GREY[0])
  with pytest.raises(UserError, match=r"'pets' cannot be written to .* \(No space left on device\)"):
    prepare("folder", tmp_path / "photos", "pets", tmp_path / "data")
  assert not list((tmp_path / "data").iterdir())
