"""A report of a shrunk run: everything is there, nothing of a workdir is markup, and it opens in a
browser without a word.
"""

import dataclasses
import json
import shutil

import pytest

from jldm.cli import main
from jldm.config.experiment import Evaluation
from jldm.core.errors import UserError
from jldm.evaluation import report
from jldm.runs.train import train
from jldm.storage import workdir as workdirs
from tests.chromium import CHROMIUM, opened
from tests.configs import config, shrunk
from tests.evaluation.test_page import Tags

pytestmark = pytest.mark.slow  # tests/evaluation/test_page.py and test_records.py have the parts
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Two steps, judged after each and once more by hand; its name is hostile."""
  path = tmp_path_factory.mktemp("runs") / HOSTILE.replace("/", "|")
  experiment = shrunk(config("digits"))
  data = dataclasses.replace(experiment.data, count=160)
  evaluation = Evaluation(extractor="pixels", n=70, every_steps=1)
  denoiser = dataclasses.replace(experiment.stage("denoiser"), picture_every_steps=1)
  train(
    dataclasses.replace(experiment.with_stage(denoiser), data=data, evaluation=evaluation), path, devices=1
  )
  assert main(["evaluate", "--workdir", str(path), "--stage", "all", "--devices", "1"]) == 0
  return path


@pytest.fixture(scope="module")
def text(workdir):
  assert main(["report", str(workdir), "--devices", "1"]) == 0
  return (workdir / "report.html").read_text()


def test_everything_is_there(text):
  for title in (
    "Samples over time",
    "Denoising",
    "Metrics of samples",
    "Nearest neighbours",
    "Metrics over time",
    "Reconstructions",
    "Metrics of reconstructions",
    "Worst reconstructions",
    "Training: autoencoder",
    "Training: denoiser",
    "The experiment",
    "Versions",
  ):
    assert f"<h2>{title}</h2>" in text, title
  tags = Tags(text).found
  assert sum(tag == "img" for tag, _ in tags) == 6, "two steps of samples, and one each of the others"
  assert "step 1</figcaption>" in text and "step 2</figcaption>" in text
  for words in (
    "Loss",
    "Step time",
    "Held-out loss",
    "t = 0.1</span>",
    "PSNR",
    "against 160 pictures of train",
    "&quot;steps&quot;: 2",
    "jaxlib",
  ):
    assert words in text, words


def test_nothing_of_a_workdir_is_markup(workdir, text, tmp_path):
  assert "script" not in {tag for tag, _ in Tags(text).found} and "&lt;script&gt;alert(1)" in text
  copy = tmp_path / "w"
  shutil.copytree(workdir, copy)
  path = workdirs.evaluation_folder(copy) / "2.json"
  judged = json.loads(path.read_text())
  judged["metrics"] = {f"{HOSTILE}{name}": each for name, each in judged["metrics"].items()}
  judged["extractor"]["name"] = judged["versions"]["jax"] = judged["left_out"][HOSTILE] = HOSTILE
  path.write_text(json.dumps(judged))
  with (copy / "metrics.jsonl").open("a") as file:
    file.write(
      json.dumps({"stage": "denoiser", "step": 3, "loss": 1.0, f"{HOSTILE}term": 2.0, HOSTILE: HOSTILE})
      + "\n"
    )
    file.write(
      json.dumps({"stage": "denoiser", "step": 4, "loss": 1.0, f"{HOSTILE}term": 3.0}) + '\n{"stage": "den'
    )
  assert "script" not in {tag for tag, _ in Tags(report.build_report(copy, 1)).found}


def test_a_run_that_has_only_begun(workdir, tmp_path):
  copy = tmp_path / "w"
  copy.mkdir()
  shutil.copy(workdir / "experiment.json", copy)
  text = report.build_report(copy, 1)
  assert (
    Tags(text)
    and "Not drawn: workdir" in text
    and "<h2>The experiment</h2>" in text
    and "Training:" not in text
  )


def test_an_evaluation_that_is_none_is_reported(workdir, tmp_path):
  copy = tmp_path / "w"
  shutil.copytree(workdir, copy)
  (workdirs.evaluation_folder(copy) / "2.json").write_text("[]")
  with pytest.raises(UserError, match="is no evaluation; remove it, or write it again with jldm evaluate"):
    report.build_report(copy, 1)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_in_a_browser_without_a_word(text, tmp_path, dark):
  seen = opened(text, tmp_path, dark=dark)
  assert seen["pictures"] == 6 and seen["broken"] == 0
  assert not seen["refused"] and not seen["errors"] and not seen["requests"] and not seen["console"]
  assert seen["width"] <= seen["inner"] == 1280 and seen["small"] == 0
  assert seen["paper"] == ("rgb(20, 23, 27)" if dark else "rgb(252, 252, 251)")
