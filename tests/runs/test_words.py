"""A denoiser with a tower of its own for captions: trained, sampled by prompts and judged by a scorer."""

import json

import numpy as np
import pytest

from jldm.cli import main
from jldm.config import serialize
from jldm.config.experiment import Evaluation, Experiment, Need, Sampling, Stage
from jldm.data.synthetic import Synthetic
from jldm.diffusion.process import Flow
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.models.codecs.images import Identity
from jldm.models.conditioners.text import Words
from jldm.models.denoisers.dit import DiT
from jldm.models.towers.words import Hashed, WordEncoder
from jldm.nn.transformer import JointBlock
from jldm.objectives.diffusion import Diffusion
from jldm.runs.train import train
from jldm.samplers.ddim import DDIM
from tests.networks import randomised

SCORER = """
import numpy as np
from jldm.evaluation.captions import register_scorer


@register_scorer
def even(images, captions):
  last = np.array([int(caption.split()[-1]) for caption in captions])
  return {"even": last % 2 == 0, "bright": images.mean((1, 2, 3)) / 255}
"""


def experiment() -> Experiment:
  encoder = WordEncoder(rows=32, length=8, width=8, depth=1, heads=2, hidden=8)
  objective = Diffusion(
    network=DiT(block=JointBlock(heads=2), patch=4, width=16, depth=1, token_width=8),
    process=Flow(),
    conditioners=(Words(encoder=encoder, tokenizer=Hashed(8)),),
  )
  stage = Stage(
    name="denoiser",
    objective=objective,
    needs=(Need("codec", Identity()),),
    steps=2,
    batch_size=8,
    picture_every_steps=2,
    save_every_steps=1,
  )
  return Experiment(
    data=Synthetic(height=8, width=8, classes=0, count=40, caption=20),
    stages=(stage,),
    sampling=Sampling(sampler=DDIM(), steps=2),
    evaluation=Evaluation(extractor="pixels", n=20),
  )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("words") / "w"
  train(experiment(), workdir, devices=1)
  return workdir


def test_it_is_data():
  assert serialize.loads(serialize.dumps(experiment())) == experiment()


@pytest.mark.slow
def test_prompts_are_heard(trained):
  model, params = load(trained)
  assert params["text"]["words"]["embedding"].shape == (32, 8)
  params = params | {name: randomised(params[name]) for name in ("denoiser", "text")}
  draw = lambda **fields: generate(model, params, Request(n=2, **fields)).data.astype(int)
  one, other = (draw(given={"text": text}) for text in ("waves of class 1", "class waves of 1"))
  assert np.abs(one - other).max() > 1, "the order of words counts"
  assert np.abs(draw() - draw(given={"text": ""})).max() <= 1, "no prompt is the empty one"


@pytest.mark.slow
def test_samples_are_judged_by_a_scorer_of_ones_own(trained, tmp_path, capsys):
  (tmp_path / "mine.py").write_text(SCORER)
  words = ["evaluate", "--workdir", str(trained), "--metrics", "kid", "--devices", "1"]
  options = ["--import", str(tmp_path / "mine.py"), "--scorer", "even", "--captions", "train"]
  assert main([*words, *options]) == 0
  assert "caption bright" in capsys.readouterr().out
  record = json.loads((trained / "evaluation" / "2.json").read_text())
  assert record["samples"]["captions"] == {"split": "train", "scorer": "even"}
  figures = record["metrics"]
  assert figures["caption_even"]["value"] == figures["caption_even"]["real"]["value"]
  assert figures["caption_bright"]["value"] != figures["caption_bright"]["real"]["value"]
  assert main([*words, "--scorer", "loud"]) == 2
  assert "scorer 'loud'; expected one of clothes" in capsys.readouterr().err
  assert main([*words, "--scorer", "clothes"]) == 2
  assert "images [20, 8, 8, 1] for the scorer clothes" in capsys.readouterr().err
