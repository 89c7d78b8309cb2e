"""Captions of folders of pictures, from the files to the arrays of an example."""

import json

import numpy as np
from PIL import Image
import pytest

from jldm.cli import main
from jldm.core.errors import UserError
from jldm.data.captions import cut_caption, pad_captions
from jldm.data.contents import SourceOptions, array_examples
from jldm.data.prepare import KINDS, prepare
from jldm.data.tfds import ImageData
from jldm.models.conditioners.text import caption_text

NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture
def pictures(tmp_path):
  """Three pictures whose grey level is their number."""
  folder = tmp_path / "S"
  folder.mkdir()
  for number, name in enumerate(NAMES):
    Image.new("L", (4, 4), number).save(folder / name)
  return folder


def write_lines(path, *rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def captions_of(folder, way="auto", **options):
  contents = KINDS["folder"](SourceOptions(folder, captions=way, **options))
  return [example.caption for examples in contents.splits.values() for example in examples]


def refused(folder, way="auto", **options):
  with pytest.raises(UserError) as caught:
    captions_of(folder, way, **options)
  assert str(caught.value).isprintable()
  return str(caught.value)


def read_back(tmp_path, length, split="train"):
  data = ImageData(name="mine", data_dir=str(tmp_path / "data"), height=4, width=4, caption=length)
  source = data.open(split)
  batch = source[np.arange(len(source))]
  assert {name: (array.dtype, array.shape[1:]) for name, array in batch.items()} == {
    name: (each.dtype, each.shape) for name, each in data.specs[0]
  }
  order = np.argsort(batch["image"][:, 0, 0, 0])
  return [caption_text(each) for each in batch["caption"][order]]


def test_metadata_of_lines_goes_through_the_data_set_to_a_batch(pictures, tmp_path, capsys):
  write_lines(
    pictures / "metadata.jsonl",
    {"file_name": "c.png", "text": "a  ring \u2014\n größe"},
    {"file_name": "a.png", "text": "a red\x1b[2J bag", "caption": "not this"},
  )
  words = [
    "prepare",
    "folder",
    "--source",
    str(pictures),
    "--name",
    "mine",
    "--data-dir",
    str(tmp_path / "data"),
  ]
  assert main(words) == 0
  shown = capsys.readouterr().out
  assert "  captions: train 2 of 3; the longest fits with data.caption=18\n" in shown
  assert f"  captions from metadata.jsonl; 1 of 3 pictures have none, such as '{pictures}/b.png'\n" in shown
  assert "  for example: a " in shown and "\x1b" not in shown and "left out" not in shown
  assert main(["info", str(tmp_path / "data" / "mine")]) == 0
  assert capsys.readouterr().out == shown
  assert read_back(tmp_path, 18) == ["a red\x1b[2J bag", "", "a ring \u2014 größe"]
  assert read_back(tmp_path, 16) == ["a red\x1b[2J bag", "", "a ring \u2014 grö"]


def test_cut_captions_are_counted(pictures, tmp_path):
  write_lines(
    pictures / "metadata.jsonl", *({"file_name": name, "text": "x" * len(NAMES) * 3} for name in NAMES)
  )
  (tmp_path / "H").mkdir()
  Image.new("L", (4, 4)).save(tmp_path / "H" / "d.png")
  prepare("folder", pictures, "mine", tmp_path / "data", held_out=tmp_path / "H")
  data = lambda length: ImageData(
    name="mine", data_dir=str(tmp_path / "data"), height=4, width=4, caption=length
  )
  assert data(0).notes() == data(9).notes() == []
  (line,) = data(8).notes()
  assert "data.caption=8 bytes: train 3 of 3, test 0 of 0; the longest fits with data.caption=9" in line
  assert read_back(tmp_path, 8, "test") == [""]
  assert data(8).fingerprint() != data(0).fingerprint()


def test_other_captions_are_other_data(pictures, tmp_path):
  prints = []
  for number, text in enumerate(("a bag", "a shirt")):
    write_lines(pictures / "metadata.jsonl", {"file_name": "a.png", "text": text})
    prepare("folder", pictures, "mine", tmp_path / str(number))
    data = ImageData(
      name="mine", data_dir=str(tmp_path / str(number)), train="train", held_out="train", caption=9
    )
    prints.append(data.fingerprint())
  assert prints[0] != prints[1]


def test_metadata_as_csv_and_captions_by_their_other_name(pictures):
  (pictures / "metadata.csv").write_bytes(
    b'\xef\xbb\xbffile_name,caption\r\na.png,"a bag, red"\r\nb.png\r\nc.png,\r\n'
  )
  assert captions_of(pictures) == ["a bag, red", "", ""]
  assert captions_of(pictures, "none") == [""] * 3


def test_metadata_above_the_folders_and_within_them(tmp_path):
  for name in ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png"):
    (tmp_path / "S" / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(tmp_path / "S" / name)
  write_lines(tmp_path / "S" / "metadata.jsonl", {"file_name": "train/cat/a.png", "text": "above"})
  write_lines(tmp_path / "S" / "train" / "metadata.jsonl", {"file_name": "dog/b.png", "text": "split"})
  write_lines(tmp_path / "S" / "val" / "cat" / "metadata.jsonl", {"file_name": "c.png", "text": "class"})
  assert captions_of(tmp_path / "S") == ["above", "split", "class"]


def test_texts_next_to_pictures(pictures):
  (pictures / "a.txt").write_text("a red\nbag\n")
  (pictures / "c.TXT").write_text("\ufeff a ring")
  Image.new("L", (4, 4)).save(pictures / "c.jpg")
  assert captions_of(pictures) == ["a red bag", "", "a ring", "a ring"]
  write_lines(pictures / "metadata.jsonl", {"file_name": "b.png", "text": "metadata go first"})
  assert captions_of(pictures) == ["", "metadata go first", "", ""]
  assert captions_of(pictures, "txt") == ["a red bag", "", "a ring", "a ring"]


def test_names_of_files(pictures):
  Image.new("L", (4, 4)).save(pictures / "z_two red_bags.png")
  assert captions_of(pictures, "filename") == ["a", "b", "c", "z two red bags"]
  assert captions_of(pictures) == [""] * 4


def test_metadata_without_texts_are_no_captions(pictures):
  write_lines(pictures / "metadata.jsonl", {"file_name": "a.png", "label": 3})
  assert captions_of(pictures) == [""] * 3
  (pictures / "notes.txt").write_text("no picture of this name")
  contents = KINDS["folder"](SourceOptions(pictures))
  assert contents.left_out == {
    "with the extension .jsonl, which is not read": ["metadata.jsonl"],
    "with the extension .txt, which is not read": ["notes.txt"],
  }
  assert "expected a metadata.jsonl or metadata.csv with a file_name and" in refused(pictures, "metadata")
  assert "captions='txt', and there are none; expected a.txt" in refused(pictures, "txt")


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    (
      b'{"file_name": "a.png", "text": "x"}\n{"file_name": "d.png", "text": "x"}',
      "line 2 names '.*d.png', which",
    ),
    (b'{"file_name": "../S/../d.png", "text": "x"}', "line 1 names '.*d.png', which is no picture"),
    (
      b'{"file_name": "a.png", "text": "x"}\n\n{"file_name": "./a.png", "text": "y"}',
      "line 3 names .* a second",
    ),
    (b'{"file_name": "a.png", "text": "\xff"}', r"line 1 is no UTF-8 \(byte 33: invalid start byte\)"),
    (b'{"file_name": "a.png", "text": "x"', r"line 1 is no JSON \("),
    (b"[" * 100_000, r"line 1 is no JSON \("),
    (b'["a.png", "x"]', "line 1 is a list; expected an object with a file_name"),
    (b'{"text": "x"}', "line 1 has file_name=None; expected the name"),
    (b'{"file_name": "a.png", "text": ["x", "y"]}', r"line 1 has a list \['x', 'y'\]; expected one text"),
    (b'{"file_name": "a.png", "text": "\\ud800"}', r"line 1 has half a surrogate pair, '\\ud800'"),
    (
      b'{"file_name": "a.png", "text": "%s"}' % (b"x" * 70_000),
      "line 1 has a caption of 70000 bytes; expected at most 65536",
    ),
  ],
)
def test_wrong_lines_are_refused_by_number(pictures, lines, message):
  (pictures / "metadata.jsonl").write_bytes(lines)
  with pytest.raises(UserError, match=rf"^'{pictures}/metadata.jsonl' {message}"):
    captions_of(pictures)
  assert captions_of(pictures, "none") == [""] * 3 and "--captions none" in refused(pictures)


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ("file_name,text\na.png,x,y\n", r"line 2 cannot be read as CSV \(1 values more"),
    ('file_name,text\na.png,"x\n', r"line 2 cannot be read as CSV \(unexpected end"),
    ("name,text\na.png,x\n", "line 2 has file_name=None"),
  ],
)
def test_wrong_rows_are_refused(pictures, lines, message):
  (pictures / "metadata.csv").write_text(lines)
  with pytest.raises(UserError, match=rf"^'{pictures}/metadata.csv' {message}"):
    captions_of(pictures)


def test_other_wrong_files(pictures, tmp_path):
  (pictures / "a.txt").write_text("a bag")
  (pictures / "d.txt").write_text("nothing")
  assert refused(pictures).startswith(
    f"'{pictures}/d.txt' has no picture of its name next to it; move it away"
  )
  (pictures / "d.txt").write_bytes(b"x" * 2**17)
  (pictures / "d.txt").rename(pictures / "b.txt")
  assert "b.txt' has 131072 bytes; expected at most 65536" in refused(pictures)
  write_lines(pictures / "metadata.jsonl", {"file_name": "a.png", "text": "x"})
  assert "has 36 bytes; expected at most 35" in refused(pictures, max_bytes=35)
  with pytest.raises(UserError, match="captions='txt' with digits; expected 'auto': only folder"):
    prepare("digits", None, "digits", tmp_path / "data", captions="txt")
  with pytest.raises(UserError, match=r"captions='all'; expected one of \['auto', 'metadata'"):
    prepare("folder", pictures, "mine", tmp_path / "data", captions="all")
  assert not (tmp_path / "data").exists()


def test_captions_that_a_data_set_does_not_have(digits_dir):
  data = ImageData(name="digits", data_dir=str(digits_dir), caption=8)
  with pytest.raises(
    UserError, match=r"\['image', 'label'\] and no text called 'caption' for data.caption=8"
  ):
    data.open("train")


def test_examples_of_other_kinds_have_captions():
  images = np.zeros((2, 4, 4), np.uint8)
  assert [each.caption for each in array_examples(images, [0, 1], "image", ["a", "b"])] == ["a", "b"]
  assert [each.caption for each in array_examples(images, [0, 1], "image")] == ["", ""]
  with pytest.raises(ValueError):
    array_examples(images, [0, 1], "image", ["a"])


@pytest.mark.parametrize("length", range(1, 9))
def test_no_character_is_cut(length):
  text = "aß—😀b".encode()
  cut = cut_caption(text, length)
  assert len(cut) <= length and text.startswith(cut)
  assert cut.decode() == text[:length].decode("utf-8", "ignore")
  (row,) = pad_captions([text], length)
  assert row.dtype == np.uint8 and bytes(row) == cut + b"\0" * (length - len(cut))
