import dataclasses
import json
import shutil
import socket
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from jldm.core.errors import UserError
from jldm.data import tfds as module
from jldm.data.buckets import Buckets, bucket_shapes
from jldm.data.builder import describe_dataset, find_dataset
from jldm.data.prepare import prepare
from jldm.data.source import Arrays
from jldm.data.tfds import ImageData, Records


@pytest.fixture
def digits(digits_dir):
  return ImageData(name="digits", data_dir=str(digits_dir), classes=10)


def refused(data, split="train"):
  with pytest.raises(UserError) as caught:
    data.open(split)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_both_sources_read_the_same(digits, monkeypatch):
  fast = digits.open("train")
  monkeypatch.setattr(module, "IN_MEMORY_BYTES", 1797 * 32 * 32 - 1)
  slow = digits.open("train")
  assert isinstance(fast, Arrays) and isinstance(slow, Records) and len(fast) == len(slow) == 1797
  rows = np.array([1796, 0, 5, 5, 1000, 1100])
  for source in (fast, slow):
    batch = source[rows]
    assert batch["image"].shape == (6, 32, 32, 1) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (6,) and batch["label"].dtype == np.int32
    assert batch.keys() == {"image", "label"}
    for name, array in fast[rows].items():
      np.testing.assert_array_equal(batch[name], array)
  np.testing.assert_array_equal(slow[np.array([5])]["image"], fast[rows]["image"][2:3])


def test_slices_partition_a_split(digits):
  whole, most, rest = (digits.open(split) for split in ("train", "train[:95%]", "train[95%:]"))
  assert len(most) + len(rest) == 1797 and len(rest) in (89, 90, 91)
  for name in ("image", "label"):
    together = np.concatenate([most.arrays[name], rest.arrays[name]])
    np.testing.assert_array_equal(together, whole.arrays[name])


def test_without_classes_every_label_is_unknown(digits):
  assert set(dataclasses.replace(digits, classes=0).open("train").arrays["label"]) == {-1}


def test_nothing_touches_the_network_or_tensorflow(digits, monkeypatch):
  monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("connects"))
  monkeypatch.setattr(socket, "getaddrinfo", lambda *args: pytest.fail("looks up"))
  digits.open("train[:10]")
  assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
  ("name", "ways"),
  [
    ("digits", "jldm prepare digits --data-dir 'my data'"),
    (
      "mnist",
      "jldm prepare {folder,idx,npz} --name mnist --source SOURCE --data-dir 'my data'; "
      "or, for a stock TFDS set: pip install 'jldm[tf]' and "
      "tfds build mnist --data_dir 'my data' --file_format array_record",
    ),
  ],
)
def test_a_missing_data_set_says_how_to_make_it(name, ways):
  expected = f"data set '{name}' is not in 'my data'; make it with: {ways}"
  assert refused(ImageData(name=name, data_dir="my data")) == expected


def test_a_missing_data_set_is_reported_at_once(tmp_path):
  code = (
    "import sys\nfrom jldm.data.tfds import ImageData\ntry:\n  ImageData(name='mnist').open('train')\n"
    "except ValueError as error:\n  print(error)\nassert 'tensorflow_datasets' not in sys.modules"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    check=True,
    timeout=60,
    env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    cwd=tmp_path,
  )
  assert "data set 'mnist' is not in 'data'" in done.stdout


@pytest.mark.parametrize("split", ["test", "", "train[:0%]", "train[:x]", "train[5:99999]"])
def test_a_split_that_is_not_there_is_refused(digits, split):
  message = refused(digits, split)
  assert message.startswith(f"split '{split}' of data set 'digits'") and "{'train': 1797}" in message


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"height": 64},
      "height 32 but the experiment says 64; set data.height=32 or prepare it with another --size",
    ),
    ({"width": 16, "channels": 3}, "set data.width=32 data.channels=1 or"),
    ({"channels": 3}, "set data.channels=1 or prepare it with another --channels"),
    ({"classes": 9}, "has 10 classes but the experiment says 9; set data.classes=10"),
    ({"classes": 11}, "has 10 classes but the experiment says 11; set data.classes=10"),
  ],
)
def test_fields_that_do_not_fit_the_data_are_refused(digits, fields, message):
  assert message in refused(dataclasses.replace(digits, **fields))


def labelled(tmp_path, labels):
  np.savez(tmp_path / "a.npz", images=np.zeros((len(labels), 4, 4), np.uint8), labels=labels)
  prepare("npz", tmp_path / "a.npz", "some", tmp_path)
  return ImageData(name="some", data_dir=str(tmp_path), height=4, width=4)


def test_a_label_out_of_range_is_refused(tmp_path):
  data = labelled(tmp_path, [0, -1, 2, 9])
  (find_dataset("some", tmp_path) / "metadata.json").write_text(
    "{}"
  )  # as in a stock set that does not name its classes
  assert "label 9 in data set 'some' with data.classes=3; legal are -1 (unknown) to 2" in refused(
    dataclasses.replace(data, classes=3)
  )
  assert sorted(dataclasses.replace(data, classes=10).open("train").arrays["label"]) == [-1, 0, 2, 9]


def test_an_unlabelled_set_has_no_classes(tmp_path):
  data = labelled(tmp_path, [-1, -1])
  message = refused(dataclasses.replace(data, classes=2))
  assert "has 0 classes but the experiment says 2; set data.classes=0" in message
  assert data.open("train").arrays["label"].tolist() == [-1, -1]


# ---- data sets that others prepared

PHOTOS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


class Stock(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Like a stock set: configurations, image size left open, class labels, other features beside."""

  VERSION = tfds.core.Version("2.0.0")
  BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in ("plain", "cut", "bare"))
  name = "stock"

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
      "title": tfds.features.Text(),
      "label": tfds.features.ClassLabel(names=["no", "yes"]),
    }
    if self.builder_config.name == "bare":
      features = {"picture": features["image"]}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for number, pixels in enumerate(PHOTOS):
      image = Image.fromarray(pixels[:4] if self.builder_config.name == "cut" and number == 2 else pixels)
      example = {"image": image, "title": "x", "label": number % 2}
      yield number, {"picture": image} if self.builder_config.name == "bare" else example


@pytest.fixture(scope="module")
def stock_dir(tmp_path_factory):
  directory = tmp_path_factory.mktemp("stock")
  for config in ("plain", "cut", "bare"):
    Stock(data_dir=directory, config=config).download_and_prepare(file_format="array_record")
  return directory


@pytest.fixture
def stock(stock_dir):
  return ImageData(name="stock/plain", data_dir=str(stock_dir), height=8, width=8, channels=3, classes=2)


def test_a_stock_set_is_read(stock):
  batch = stock.open("train").arrays
  order = [PHOTOS.tobytes().index(image.tobytes()) // PHOTOS[0].nbytes for image in batch["image"]]
  assert sorted(order) == [0, 1, 2, 3] and [number % 2 for number in order] == batch["label"].tolist()


def test_grey_is_not_read_from_colour(stock):
  assert "channels 3 but the experiment says 1" in refused(dataclasses.replace(stock, channels=1))


def test_images_of_open_size_are_checked(stock, monkeypatch):
  large = dataclasses.replace(stock, height=16, width=16)
  assert "height 8, width 8 but the experiment says 16, 16" in refused(large)
  assert "height 4 but the experiment says 8" in refused(dataclasses.replace(stock, name="stock/cut"))
  monkeypatch.setattr(
    module, "IN_MEMORY_BYTES", 0
  )  # the first image is checked when opened, others when read
  assert "height 8, width 8 but" in refused(large)


def test_a_stock_set_of_several_sizes_is_read_in_buckets(stock):
  source = dataclasses.replace(stock, name="stock/cut", buckets=((4, 8), (2, 2))).open("train")
  large, small = source.sources
  assert (len(large), len(small)) == (3, 1)
  np.testing.assert_array_equal(small.arrays["image"][0], PHOTOS[2, :4])
  assert small.arrays["label"].tolist() == [0] and sorted(large.arrays["label"]) == [0, 1, 1]


def test_sizes_that_are_in_no_bucket_are_named(stock):
  message = refused(dataclasses.replace(stock, name="stock/cut", height=16, width=16, buckets=((2, 2),)))
  assert (
    "has images of 8x8, 4x8 (height x width) but the experiment says 16x16, 2x2; set data.buckets" in message
  )
  message = refused(dataclasses.replace(stock, name="stock/cut", buckets=((2, 2),)))
  assert "has images of 4x8 (height" in message
  message = refused(dataclasses.replace(stock, channels=1, buckets=((4, 8),)))
  assert "channels 3 but the experiment says 1" in message


def test_the_classes_of_a_stock_set_are_known(stock):
  assert "has 2 classes but the experiment says 3" in refused(dataclasses.replace(stock, classes=3))


def test_several_configurations_must_be_told_apart(stock):
  message = refused(dataclasses.replace(stock, name="stock"))
  assert "several configurations; name one of ['stock/bare', 'stock/cut', 'stock/plain']" in message


def test_an_image_is_needed(stock):
  assert "has features ['picture'] and no 8-bit image" in refused(
    dataclasses.replace(stock, name="stock/bare")
  )


def test_the_newest_version_is_taken(digits_dir, tmp_path):
  for version in ("1.0.0", "1.10.0", "1.9.0", "incomplete.X_2.0.0"):
    shutil.copytree(digits_dir / "digits" / "1.0.0", tmp_path / "digits" / version)
    info = tmp_path / "digits" / version / "dataset_info.json"
    info.write_text(info.read_text().replace('"1.0.0"', f'"{version}"'))
  assert find_dataset("digits", tmp_path) == tmp_path / "digits" / "1.10.0"
  assert len(ImageData(name="digits", data_dir=str(tmp_path)).open("train[:7]")) == 7


def test_records_of_another_format_are_refused(digits_dir, tmp_path):
  shutil.copytree(digits_dir / "digits", tmp_path / "digits")
  info = tmp_path / "digits" / "1.0.0" / "dataset_info.json"
  for file_format in ("tfrecord", None):
    content = json.loads(info.read_text()) | {"fileFormat": file_format}
    info.write_text(json.dumps({name: value for name, value in content.items() if value}))
    message = refused(ImageData(name="digits", data_dir=str(tmp_path)))
    assert "is stored as tfrecord, jldm reads array_record" in message
    assert "tfds convert_format" in message and "--out_file_format=array_record" in message


def test_a_data_set_is_described_in_one_line(digits_dir):
  folder = digits_dir / "digits" / "1.0.0"
  assert (
    describe_dataset(folder) == f"{folder}: train 1797 images; height 32, width 32, channels 1; 10 classes"
  )


# ---- buckets


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
  """Pictures of three ratios, their colour in every pixel, prepared as 8x8, 4x16 and 16x4."""
  root = tmp_path_factory.mktemp("pets")
  for number in range(12):
    folder = root / "photos" / ("ant", "bee")[number % 2]
    folder.mkdir(parents=True, exist_ok=True)
    size = ((20, 22), (10, 40), (40, 10))[number // 2 % 3]
    Image.fromarray(np.full((*size, 3), 20 * number, np.uint8)).save(folder / f"{number}.png")
  prepare("folder", root / "photos", "pets", root, size=(8, 8), buckets=((4, 16), (16, 4)))
  return ImageData(
    name="pets",
    data_dir=str(root),
    train="train[:75%]",
    held_out="train[75%:]",
    height=8,
    width=8,
    channels=3,
    classes=2,
    buckets=((4, 16), (16, 4)),
  )


def colours(source):
  return {
    shape: sorted(part.arrays["image"].mean((1, 2, 3)) / 20)
    for part in source.sources
    for shape in [part.arrays["image"].shape[1:3]]
  }


def test_buckets_are_read_as_prepared(pets):
  source = pets.open("train")
  assert isinstance(source, Buckets) and len(source) == 12
  assert colours(source) == {(8, 8): [0, 1, 6, 7], (4, 16): [2, 3, 8, 9], (16, 4): [4, 5, 10, 11]}
  for part in source.sources:
    np.testing.assert_array_equal(part.arrays["image"].mean((1, 2, 3)) / 20 % 2, part.arrays["label"])


def test_slices_of_buckets_partition_a_split(pets):
  parts = [colours(pets.open(split)) for split in (pets.train, pets.held_out)]
  assert sum(map(len, parts[0].values())) == 9
  together = {
    shape: sorted(parts[0].get(shape, []) + parts[1].get(shape, [])) for shape in bucket_shapes(pets)
  }
  assert together == colours(pets.open("train"))


def test_buckets_too_large_for_memory_read_the_same(pets, monkeypatch):
  pets = dataclasses.replace(pets, mirror=True, labelled=0.5)
  fast = pets.open(pets.train)
  monkeypatch.setattr(module, "IN_MEMORY_BYTES", 0)
  slow = pets.open(pets.train)
  for one, other in zip(fast.sources, slow.sources, strict=True):
    assert isinstance(one.source, Arrays) and not isinstance(other.source, Arrays)
    rows = np.arange(len(one))[::-1]
    for name, array in one[rows].items():
      np.testing.assert_array_equal(other[rows][name], array)


def test_which_labels_are_kept_does_not_depend_on_the_buckets(pets):
  """It is a function of the rows before they are dealt out."""
  known = set()
  for part in dataclasses.replace(pets, labelled=0.5, train="train").open("train").sources:
    known |= {
      round(colour / 20) for colour in part.arrays["image"].mean((1, 2, 3))[part.arrays["label"] >= 0]
    }
  assert len(known) == 6 and len({number for number in known if number % 2}) == 3


def test_a_set_of_several_shapes_says_what_to_set(pets):
  message = refused(dataclasses.replace(pets, buckets=(), height=32, width=32))
  assert "has images of 8x8, 4x16, 16x4 (height x width) but the experiment says 32x32; set" in message
  assert message.endswith("set data.height=8 data.width=8 'data.buckets=((4, 16), (16, 4))'")


def test_a_set_of_several_shapes_is_described_in_one_line(pets):
  folder = find_dataset("pets", pets.data_dir)
  assert (
    describe_dataset(folder)
    == f"{folder}: train 12 images; 8x8, 4x16, 16x4 (height x width), channels 3; 2 classes"
  )
