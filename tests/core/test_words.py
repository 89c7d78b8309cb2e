"""One of a thing is written in the singular."""

from jldm.core.words import count_text


def test_one_is_not_many():
  assert [count_text(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
  assert [count_text(count, "class", "classes") for count in (1, 2)] == ["1 class", "2 classes"]
