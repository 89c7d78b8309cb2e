"""Whatever lies in a workdir under the names of its metrics, evaluations and sheets: a page, or one line."""

import copy
import json
import math
import os

from hypothesis import given, strategies as st
import pytest

from jldm.config.serialize import dumps
from jldm.core.errors import UserError
from jldm.evaluation import records, report
from jldm.train.logging import drop_rows_after
from tests.configs import config, shrunk
from tests.evaluation.test_page import Tags
from tests.test_fuzz import anything, spoiled

INTERVAL = {"value": 1.5, "low": 1.0, "high": 2.0}
RECORD = {
  "stage": "denoiser",
  "step": 2,
  "samples": {
    "n": 70,
    "seed": 0,
    "sampler": "dpmpp_2m",
    "steps": 4,
    "grid": "uniform",
    "guidance_scale": 0.9,
  },
  "extractor": {
    "name": "pixels",
    "version": "1",
    "preprocessing": "none",
    "weights": "",
    "distance": "Fréchet distance",
  },
  "reference": {"split": "train", "n": 160},
  "real": {"split": "test", "n": 70},
  "metrics": {"frechet": INTERVAL | {"n": 70, "real": INTERVAL | {"n": 70}}, "recall": INTERVAL | {"n": 70}},
  "classes": {"0": {"frechet": INTERVAL | {"n": 7}}, "1": {}},
  "left_out": {"agreement": "no classes"},
  "memorisation": {"flagged": False, "nearer": 0.5, "copies": 0.01},
  "versions": {"jax": "0.6", "python": "3.11"},
}
ROW = {"stage": "denoiser", "step": 1, "loss": 0.5, "term": 2.0, "skipped": 0, "images_per_second": 3.5}
ODD = (None, True, "text", -1, 0.5, 10**400, 1e300, math.nan, -math.inf, [], [[]], {}, {"a": {}}, "\ud800")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  (folder / "experiment.json").write_text(dumps(shrunk(config("digits"))))
  (folder / "evaluation").mkdir()
  (folder / "images").mkdir()
  return folder


@pytest.fixture(autouse=True)
def not_drawn(monkeypatch):
  monkeypatch.setattr(report, "denoising_section", lambda *_: "")


def page_or_line(workdir) -> str | None:
  """The page, or None if one line tells what is wrong."""
  try:
    text = report.build_report(workdir)
  except UserError as error:
    assert "\n" not in str(error) and "remove it" in str(error)
    return None
  assert Tags(text) and text.encode(errors="replace")
  return text


def test_recall_of_features_that_do_not_see_blur_is_no_headline():
  other = RECORD | {"extractor": RECORD["extractor"] | {"name": "fashion"}}
  assert "recall" in report.summary_tiles([other]) and "recall" not in report.summary_tiles([RECORD])
  unseen = "these features do not see blur"
  assert unseen in report.figures_section(RECORD, "", [])
  assert unseen not in report.figures_section(other, "", [])


def test_classes_are_called_by_their_names():
  table = report.figures_section(RECORD, "", ["ant & bee", "cat"])
  assert "ant &amp; bee" in table and "cat" in table and "ant" not in report.figures_section(RECORD, "", [])


def test_a_sound_evaluation_is_shown(workdir):
  (workdir / "evaluation" / "2.json").write_text(json.dumps(RECORD))
  (workdir / "metrics.jsonl").write_text(json.dumps(ROW))
  text = page_or_line(workdir)
  assert "<h2>Metrics of samples</h2>" in text and "<h2>Training: denoiser</h2>" in text
  assert (
    "1.5" in text
    and "guidance 0.9" in text
    and "agreement is left out: no classes" in text.replace("class ", "")
  )


@anything
@given(data=spoiled(RECORD))
def test_an_evaluation(workdir, data):
  (workdir / "evaluation" / "2.json").write_bytes(data)
  page_or_line(workdir)


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_value_of_another_type_anywhere(workdir, odd):
  def put(node, top):
    for key in list(node):
      old, node[key] = node[key], odd
      for newer in (json.dumps(top), json.dumps(RECORD | {"step": 3})):
        (workdir / "evaluation" / ("3.json" if '"step": 3' in newer else "2.json")).write_text(newer)
      page_or_line(workdir)
      node[key] = old
      if isinstance(old, dict):
        put(old, top)

  whole = copy.deepcopy(RECORD)
  put(whole, whole)
  (workdir / "evaluation" / "3.json").unlink(missing_ok=True)
  (workdir / "evaluation" / "2.json").write_text(json.dumps(RECORD))
  assert page_or_line(workdir)


@anything
@given(lines=st.lists(spoiled(ROW), max_size=4))
def test_metrics(workdir, lines):
  (workdir / "evaluation" / "2.json").write_text(json.dumps(RECORD))
  (workdir / "metrics.jsonl").write_bytes(b"\n".join([*lines, json.dumps(ROW | {"step": 5}).encode()]))
  assert "<h2>Training: denoiser</h2>" in page_or_line(workdir)


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_a_metric_of_another_type_is_left_out(workdir, odd):
  for name in ROW:
    rows = (ROW, ROW | {"step": 2, name: odd}, ROW | {"step": 3})
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert "<h2>Training: denoiser</h2>" in page_or_line(workdir), name
    assert all(
      records.is_number(value)
      for row in records.read_metrics(workdir / "metrics.jsonl")
      for name, value in row.items()
      if name != "stage"
    )


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluation/2.json", "images/denoiser-2.png"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "latin1", "utf16", "deep", "empty"])
def test_what_is_no_file_of_its_kind_is_not_waited_for(workdir, name, kind):
  path = workdir / name
  path.unlink(missing_ok=True)
  make = {
    "pipe": lambda: os.mkfifo(path),
    "folder": path.mkdir,
    "latin1": lambda: path.write_bytes('{"stage": "é"}'.encode("latin1")),
    "utf16": lambda: path.write_bytes(json.dumps({"stage": "é"}).encode("utf-16")),
    "deep": lambda: path.write_bytes(b"[" * 200_000),
    "empty": path.touch,
  }
  make[kind]()
  try:
    text = page_or_line(workdir)
    assert (text is None) == (name != "metrics.jsonl")
  finally:
    path.rmdir() if path.is_dir() else path.unlink()


def test_a_sheet_without_width_is_refused(workdir):
  path = workdir / "images" / "denoiser-2.png"
  path.write_bytes(records.PNG + bytes(16))
  assert page_or_line(workdir) is None
  path.unlink()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_training_does_not_wait_for_metrics_that_are_no_file(tmp_path, make):
  make(tmp_path / "metrics.jsonl")
  with pytest.raises(UserError, match=r"metrics.jsonl. is a folder, a pipe or a device; expected a file"):
    drop_rows_after(tmp_path / "metrics.jsonl", "denoiser", 2)
