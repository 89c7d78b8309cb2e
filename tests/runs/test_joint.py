"""Pictures and captions together from the command line: trained, resumed, previewed, sampled, refused."""

from pathlib import Path
import shutil
from unittest import mock

import numpy as np
from PIL import Image
import pytest

from jldm.cli import main
from jldm.cli.train import load_config
from jldm.config import registry
from jldm.runs.train import train
from tests.joint import LETTERS
from tests.trained import last_state

CONFIG = str(Path(__file__).parent / "joint.py")


@pytest.fixture(scope="module", autouse=True)
def classes():
  """The table of classes is as before afterwards."""
  with mock.patch.dict(registry.CLASSES):
    yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("joint") / "w"
  train(load_config(CONFIG), workdir, devices=1)
  return workdir


def test_a_run_that_was_stopped_ends_with_the_same_bits(workdir, tmp_path):
  copy = shutil.copytree(workdir, tmp_path / "w")
  shutil.rmtree(copy / "denoiser" / "latest" / "40")
  (copy / "denoiser" / "latest" / "40.manifest.json").unlink()
  train(load_config(CONFIG), copy, devices=1)
  whole, resumed = (last_state(each, "denoiser", 40) for each in (workdir, copy))
  assert whole.keys() == resumed.keys()
  for name, array in whole.items():
    np.testing.assert_array_equal(resumed[name], array, err_msg=name)
  held_out = lambda each: [line for line in (each / "metrics.jsonl").open() if "held_out_loss" in line]
  assert held_out(copy) == held_out(workdir) and len(held_out(workdir)) == 2


def test_its_previews_are_of_the_part_that_is_pictures(workdir):
  sheets = sorted(path.name for path in (workdir / "images").iterdir())
  assert sheets == ["denoiser-000020.png", "denoiser-000040.png"]


def test_samples_are_a_folder_per_part_of_pictures_and_arrays_of_the_others(workdir, tmp_path):
  folder, file = tmp_path / "samples", tmp_path / "samples.npz"
  for out in (folder, file):
    arguments = ["--workdir", str(workdir), "--n", "4", "--devices", "1", "--out", str(out)]
    assert main(["sample", *arguments, "--import", CONFIG]) == 0
  others = np.load(folder / "parts.npz")
  assert sorted(others.files) == ["labels", "provenance", "text"] and others["text"].shape == (4, 5)
  assert others["text"].dtype == np.uint8 and others["text"].max() < LETTERS
  whole = np.load(file)
  np.testing.assert_array_equal(whole["text"], others["text"])
  pictures = [np.asarray(Image.open(folder / "image" / f"{i:05d}.png")) for i in range(4)]
  np.testing.assert_array_equal(whole["image"][..., 0], np.stack(pictures))


@pytest.mark.parametrize(
  "command, named",
  [
    (["sample", "--previews"], "--previews and --tile with samples in parts (image, text)"),
    (["sample", "--size", "8"], "size 8x8: Both has other parameters for it"),
    (["evaluate", "--extractor", "pixels"], "several parts (image, text)"),
    (
      ["edit", "image-to-image", "--image", "docs/digits.png", "--out", "edits"],
      "latents are parts image, text",
    ),
  ],
)
def test_what_parts_do_not_have_is_one_line(workdir, command, named, capsys):
  assert main([*command, "--workdir", str(workdir), "--import", CONFIG]) == 2
  assert named in capsys.readouterr().err
  assert main(["report", str(workdir), "--import", CONFIG]) == 0
