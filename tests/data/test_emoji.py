"""Emoji with their names: which are held out, and how they are drawn where their packages are installed."""

import collections
import shutil

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.data import emoji
from jldm.data.contents import SourceOptions
from jldm.data.emoji import TONES, is_held_out, read_names, role_and_tone
from jldm.data.prepare import prepare
from jldm.data.tfds import ImageData

LIST = """# emoji-test.txt
# group: Smileys & Emotion
# subgroup: face-smiling
1F600 ; fully-qualified     # 😀 E1.0 grinning face
263A  ; unqualified         # ☺ E0.6 smiling face
# group: People & Body
1F468 1F3FD 200D 1F680 ; fully-qualified # 👨🏽‍🚀 E4.0 man astronaut: medium skin tone
1F9D1 1F3FE ; fully-qualified # 🧑🏾 E5.0 person: medium-dark skin tone
"""
INSTALLED = all((folder / name).is_file() for name, folder in (emoji.FONT, emoji.NAMES))


def test_the_list_is_read(tmp_path):
  (tmp_path / "emoji-test.txt").write_text(LIST)
  found = list(read_names(tmp_path / "emoji-test.txt"))
  assert [each.caption for each in found] == [
    "grinning face",
    "man astronaut: medium skin tone",
    "person: medium-dark skin tone",
  ]
  assert [each.group for each in found] == ["Smileys & Emotion", "People & Body", "People & Body"]
  assert found[1].text == "\U0001f468\U0001f3fd\u200d\U0001f680"
  (tmp_path / "other.txt").write_text("1F600 ; component # x")
  with pytest.raises(UserError, match=r"other\.txt' has no fully-qualified emoji"):
    list(read_names(tmp_path / "other.txt"))


@pytest.mark.parametrize(
  ("caption", "expected"),
  [
    ("woman office worker: medium-dark skin tone", ("office worker", "medium-dark")),
    ("person: dark skin tone", ("person", "dark")),
    ("waving hand: light skin tone", ("waving hand", "light")),
    ("people holding hands: light skin tone, dark skin tone", ("holding hands", "")),
    ("man: red hair", ("man", "")),
    ("flag: Japan", ("flag", "")),
    ("womanly", ("womanly", "")),
  ],
)
def test_roles_and_tones(caption, expected):
  assert role_and_tone(caption) == expected


def test_one_tone_of_every_role_is_held_out_for_all_who_have_it():
  for role in ("astronaut", "cook", "judge", "singer"):
    out = {
      who: [tone for tone in TONES if is_held_out(f"{who}{role}: {tone} skin tone")]
      for who in ("man ", "woman ", "")
    }
    assert len(out["man "]) == 1 and out["man "] == out["woman "] == out[""]
  assert not is_held_out("astronaut")


def test_what_is_missing_is_named(tmp_path):
  with pytest.raises(UserError, match=r"NotoColorEmoji\.ttf' does not exist; install Debian's fonts-noto"):
    emoji.find_file("NotoColorEmoji.ttf", tmp_path / "nowhere", tmp_path)
  with pytest.raises(UserError, match="size 32x64 of emoji; expected a square"):
    emoji.emoji_contents(SourceOptions(size=(32, 64)))
  assert not (tmp_path / "data").exists()


@pytest.mark.skipif(
  not INSTALLED, reason="Debian's fonts-noto-color-emoji and unicode-data are not installed"
)
@pytest.mark.slow
def test_all_are_drawn(tmp_path):
  prepare("emoji", None, "emoji", tmp_path, size=(32, 32))
  data = ImageData(name="emoji", data_dir=str(tmp_path), channels=3, caption=80, classes=9)
  sources = [data.open(split) for split in ("train", "test")]
  images = np.concatenate([source[np.arange(len(source))]["image"] for source in sources])
  assert sum(map(len, sources)) > 3600 and len(sources[1]) > 250
  assert (images.reshape(len(images), -1).std(1) > 5).all(), "none is blank"
  same = collections.Counter(image.tobytes() for image in images).most_common(1)[0][1]
  assert same <= 8, "nor a box for what the font lacks"


@pytest.mark.skipif(not INSTALLED, reason="Debian's fonts-noto-color-emoji is not installed")
def test_a_folder_of_the_files_is_a_source(tmp_path):
  (tmp_path / "files").mkdir()
  (tmp_path / "files" / "emoji-test.txt").write_text(LIST)
  shutil.copy(emoji.FONT[1] / emoji.FONT[0], tmp_path / "files")
  contents = emoji.emoji_contents(SourceOptions(tmp_path / "files", (48, 48)))
  assert contents.classes == ["Smileys & Emotion", "People & Body"]
  assert sum(map(len, contents.splits.values())) == 3
  assert contents.splits["train"][0].load().size == (48, 48)
