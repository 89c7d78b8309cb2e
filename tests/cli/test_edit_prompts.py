"""`jldm edit` with a model that reads captions: what its functions are given; no network runs."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from jldm.cli import edit as edit_command, main
from jldm.inference import edit, latent_edit
from jldm.inference.load import Origin
from jldm.models.conditioners.text import Words
from tests.configs import config, shrunk
from tests.edits import model_of

SIDE = 16


@pytest.fixture(scope="module")
def drawing():
  return model_of(shrunk(config("fashion_mnist")))


@pytest.fixture
def called(drawing, tmp_path, monkeypatch):
  """Arguments of the functions behind edits, by name, of a model with classes and captions."""
  calls, (model, params) = {}, drawing
  conditioners = (*model.objective.conditioners, Words(name="words"))
  captioned = dataclasses.replace(
    model, objective=dataclasses.replace(model.objective, conditioners=conditioners)
  )
  monkeypatch.chdir(tmp_path)
  Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save("A.png")
  Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save("M.png")
  for name in ("image_to_image", "inpaint", "invert", "translate"):

    def call(model, params, images, *rest, name=name):
      calls[name] = rest
      return latent_edit.Inverted(images, images, images, np.ones(1)) if name == "invert" else images

    monkeypatch.setattr(edit if name in vars(edit) else latent_edit, name, call)
  monkeypatch.setattr(
    edit_command, "load_with_origin", lambda *_, **__: (Origin("denoiser", 2), captioned, params)
  )
  return calls


def run(kind: str, *options: str) -> int:
  return main(["edit", kind, "--workdir", "W", "--image", "A.png", *options, "--out", "O"])


@pytest.mark.parametrize(
  ("kind", "options"), [("image-to-image", []), ("inpaint", ["--mask", "M.png"]), ("invert", [])]
)
def test_a_prompt_and_a_negative_one_reach_the_request(kind, options, called):
  assert run(kind, *options, "--prompt", "a red cat", "--negative", "blurred", "--guidance-scale", "3") == 0
  request, sampling = called[kind.replace("-", "_")][-2:]
  assert request.given == {"label": -1, "words": "a red cat"} and request.against == ({"words": "blurred"},)
  assert sampling.guidance.guidance_scale == 3


def test_without_a_prompt_nothing_is_said_of_it(called):
  assert run("image-to-image") == 0
  assert called["image_to_image"][-2].given == {"label": -1}
  assert called["image_to_image"][-2].against == ({},)


def test_a_picture_is_translated_from_one_text_to_another(called):
  assert run("translate", "--prompt", "a red cat", "--onto-prompt", "a dog", "--strength", "0.5") == 0
  onto, strength, request, _ = called["translate"]
  assert onto == {"words": "a dog"} and strength == 0.5 and request.given["words"] == "a red cat"


@pytest.mark.parametrize("option", ["--prompt", "--negative", "--onto-prompt"])
def test_a_model_that_reads_no_captions_says_so(option, called, drawing, monkeypatch, capsys):
  monkeypatch.setattr(edit_command, "load_with_origin", lambda *_, **__: (Origin("denoiser", 2), *drawing))
  assert run("translate", option, "a cat") == 2
  line = capsys.readouterr().err
  assert f"{option} 'a cat': this model reads no captions; leave it out" in line and line.count("\n") == 1
