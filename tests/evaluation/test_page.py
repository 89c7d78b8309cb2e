"""A page holds all it shows, and whatever comes in is text."""

import html.parser
import re

import numpy as np
import pytest

from jldm.evaluation import page
from jldm.evaluation.page import Curve
from jldm.media import images as pictures
from tests.chromium import CHROMIUM, opened

HOSTILE = '<script>alert(1)</script>"><img src=http://example.com/x onerror=alert(2)>&amp;'
PNG = pictures.encode_png(np.zeros((4, 300, 1), np.uint8), {})


class Tags(html.parser.HTMLParser):
  """Every tag with its attributes, and that each is closed in its turn."""

  def __init__(self, text):
    super().__init__()
    self.found, self.open = [], []
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag, attributes):
    self.found.append((tag, dict(attributes)))
    if tag not in ("meta", "img"):
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.found.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def everything(text):
  line = Curve([1, 2, 3], [1.0, 2.0, 3.0])
  table = page.html_table((text,), [(text, text)], [text], [page.whisker(0, 1, 2, (1, 2, 3))])
  chart = page.chart(text, {text: line, "b": line}, text, text)
  parts = (
    page.tiles([(text, text, text)]),
    table,
    page.paragraph(text),
    page.folded(text, text),
    page.figure(PNG, text),
  )
  return page.html_page(text, text, [page.section(text, *parts, page.side_by_side(chart), note=text)])


def test_nothing_that_comes_in_is_markup():
  hostile, harmless = Tags(everything(HOSTILE)).found, Tags(everything("harmless")).found
  assert [tag for tag, _ in hostile] == [tag for tag, _ in harmless] and "script" not in dict(hostile)
  assert [sorted(attributes) for _, attributes in hostile] == [
    sorted(attributes) for _, attributes in harmless
  ]


def test_everything_is_in_the_page():
  tags = Tags(everything("x")).found
  assert all(
    attributes["src"].startswith("data:image/png;base64,") for tag, attributes in tags if tag == "img"
  )
  assert not [
    attributes
    for tag, attributes in tags
    if tag in ("link", "script", "iframe", "object") or "href" in attributes
  ]
  assert not re.search(r"url\(|@import|https?://", page.STYLE)


def test_pictures_are_enlarged_by_whole_numbers():
  assert 'width="300"' in page.figure(PNG, "x")
  assert 'width="512"' in page.figure(pictures.encode_png(np.zeros((4, 128, 1), np.uint8), {}), "x")


def marks(text):
  """The points of every line."""
  paths = re.findall(r'class="line.*?d="([^"]*)"', text)
  return [[tuple(map(float, point.split())) for point in re.split("[ML]", path)[1:]] for path in paths]


def test_a_line_goes_where_its_values_are():
  (points,) = marks(page.chart("t", {"a": Curve([0, 5, 10], [0.0, 20.0, 10.0])}, ""))
  middle = (page.LEFT + page.RIGHT) / 2, (page.TOP + page.BOTTOM) / 2
  assert points == [(page.LEFT, page.BOTTOM), (middle[0], page.TOP), (page.RIGHT, middle[1])]


def test_a_line_of_many_sizes_is_logarithmic():
  text = page.chart("t", {"a": Curve([0, 1, 2], [1.0, 100.0, 10000.0])}, "")
  (points,) = marks(text)
  assert "logarithmic" in text and [y for _, y in points] == [
    page.BOTTOM,
    (page.TOP + page.BOTTOM) / 2,
    page.TOP,
  ]


def test_a_long_line_is_thinned_and_smoothed_without_a_shift():
  x = np.arange(5000.0)
  (points,) = marks(page.chart("t", {"a": Curve(x, 2 * x)}, ""))
  assert len(points) == page.MOST_POINTS
  middle = points[40:-40]
  slope = (page.BOTTOM - page.TOP) / (page.RIGHT - page.LEFT)
  np.testing.assert_allclose(
    [page.BOTTOM - y for _, y in middle], [slope * (x - page.LEFT) for x, _ in middle], atol=1
  )


def test_points_that_are_not_finite_are_left_out():
  (points,) = marks(page.chart("t", {"a": Curve([0, 1, 2], [1.0, float("nan"), 2.0])}, ""))
  assert (
    len(points) == 2
    and page.chart("t", {"a": Curve([0], [float("inf")])}, "") == page.chart("t", {}, "") == ""
  )


@pytest.mark.parametrize("y", [[0.0], [3.0, 3.0], [-1e-9, 1e-9], [1e12, 1.0]])
def test_any_values_can_be_drawn(y):
  text = page.chart("t", {"a": Curve(range(len(y)), y, [v - 1 for v in y], [v + 1 for v in y])}, "")
  assert "nan" not in text and "inf" not in text and Tags(text)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
def test_what_is_wrong_with_a_page_would_be_seen(tmp_path):
  """That the pages of jldm pass is worth something."""
  bad = (
    '<p style="width: 3000px; font-size: 8px">wide</p><img src="data:image/png;base64,AAAA">'
    '<img src="http://127.0.0.1:9/x.png">'
  )
  seen = opened(page.html_page("bad", "", [bad]), tmp_path)
  assert (
    seen["broken"] == seen["pictures"] == 2
    and seen["refused"] == ["http://127.0.0.1:9/x.png"]
    and seen["console"]
  )
  assert seen["width"] > seen["inner"] == 1280 and seen["small"] == 1
