"""A denoiser that reads captions by an imported text tower: trained, resumed and sampled by prompts."""

import dataclasses
import re
import shutil

import numpy as np
import pytest

from jldm.cli import main
from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.core.errors import UserError
from jldm.data.synthetic import Synthetic
from jldm.diffusion.process import Flow
from jldm.inference.generate import Request, generate
from jldm.inference.load import load, text_conditioner
from jldm.media.images import provenance_or_none
from jldm.models.codecs.images import Identity
from jldm.models.denoisers.dit import DiT
from jldm.nn.transformer import ModulatedBlock
from jldm.objectives.diffusion import Diffusion
from jldm.runs.train import train
from jldm.samplers.ddim import DDIM
from jldm.samplers.guidance import ClassifierFree
from tests.configs import ROOT
from tests.networks import randomised
from tests.towers import NETWORK, write_tower


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
  """The workdir of an imported text tower."""
  folder = tmp_path_factory.mktemp("tower")
  write_tower(folder / "text_encoder")
  assert main(["convert", str(folder / "text_encoder"), str(folder / "clip"), "--to", "jldm"]) == 0
  return folder / "clip"


def captioned(tower, **fields) -> Experiment:
  network = DiT(block=ModulatedBlock(heads=2), patch=4, width=16, depth=1, token_width=NETWORK.width)
  objective = Diffusion(
    network=network, process=Flow(), conditioners=(text_conditioner(tower, dropout=0.5, **fields),)
  )
  stage = Stage(
    name="denoiser",
    objective=objective,
    needs=(Need("codec", Identity()), Need("text", str(tower))),
    steps=2,
    batch_size=8,
    picture_every_steps=2,
    save_every_steps=1,
  )
  data = Synthetic(height=8, width=8, count=16, caption=20)
  return Experiment(data=data, stages=(stage,), sampling=Sampling(sampler=DDIM(), steps=2))


@pytest.fixture(scope="module")
def trained(tower, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("text") / "w"
  train(captioned(tower, pooled=True), workdir, devices=1)
  return workdir


@pytest.mark.slow
def test_tokens_are_kept_in_half_precision(trained):
  (kept,) = (trained / "conditions").glob("*/0-0/text__tokens.npy")
  tokens = np.load(kept)
  model, params = load(trained)
  batch = model.conditioners["text"].derive({"caption": Synthetic(caption=20).captions(np.zeros(16, int))})
  ids = batch["text_ids"]
  expected = NETWORK.apply({"params": params["text"]}, ids).tokens
  assert tokens.dtype == np.float16 and tokens.shape == (16, 6, NETWORK.width)
  np.testing.assert_allclose(tokens, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.slow
def test_prompts_per_sample_and_what_they_push_from(trained):
  model, params = load(trained)
  assert params["text"]["tokens"]["embedding"].shape == (NETWORK.vocabulary, NETWORK.width)
  prompts = ["waves of class 0", "cat", ""]
  draw = lambda **fields: generate(model, params, Request(n=3, **fields)).data
  drawn = draw(given={"text": prompts})
  assert drawn.shape == (3, 8, 8, 1) and drawn.dtype == np.uint8
  np.testing.assert_array_equal(drawn, draw(given={"text": prompts}))
  alone = generate(model, params, Request(n=1, given={"text": "cat"}, rows=[1])).data
  assert np.abs(alone[0].astype(int) - drawn[1]).max() <= 1
  same = draw(given={"text": prompts}, against=({"text": ""},))
  assert np.abs(same.astype(int) - drawn).max() <= 1, "the null is the empty prompt"
  plain = draw()
  assert np.abs(plain[2].astype(int) - drawn[2]).max() <= 1, "no prompt is the empty prompt"
  with pytest.raises(UserError, match="2 values of 'text' for 3 samples"):
    draw(given={"text": ["a", "b"]})


@pytest.mark.slow
def test_prompts_from_the_command_line(trained, tmp_path, capsys):
  """In Python the same; the prompt stands in each picture, in the .npz and in no other model's options."""
  (tmp_path / "prompts.txt").write_text("waves of class 0\ncat\n")
  words = ["sample", "--workdir", str(trained), "--n", "3", "--devices", "1", "--guidance-scale", "2"]
  model, params = load(trained)
  sampling = dataclasses.replace(model.sampling, guidance=ClassifierFree(2.0))
  prompts = ["waves of class 0", "waves of class 0", "cat"]
  request = Request(n=3, given={"text": prompts}, against=({"text": "waves"},))
  wanted = generate(model, params, request, sampling).data
  for option, out in (("waves of class 0|cat", "a.npz"), (str(tmp_path / "prompts.txt"), "b.npz")):
    path = str(tmp_path / out)
    assert main([*words, "--prompt", option, "--negative", "waves", "--out", path]) == 0
    drawn = np.load(path)
    np.testing.assert_array_equal(drawn["images"], wanted)
    assert drawn["prompts"].tolist() == prompts and drawn["labels"].tolist() == [-1] * 3
  assert main([*words, "--prompt", "cat", "--negative", "waves", "--out", str(tmp_path / "O")]) == 0
  text = provenance_or_none(tmp_path / "O" / "00002.png")
  assert (text["prompt"], text["negative"], text["guidance_scale"]) == ("cat", "waves", 2.0)


@pytest.mark.slow
def test_the_denoiser_hears_the_words(trained):
  model, params = load(trained)
  loud = params | {"denoiser": randomised(params["denoiser"], scale=0.1)}
  draw = lambda prompt: generate(model, loud, Request(n=1, given={"text": prompt})).data.astype(int)
  assert np.abs(draw("cat") - draw("waves of class 2")).max() > 1


@pytest.mark.slow
def test_its_params_leave_the_tower_where_it_is(trained, tmp_path, capsys):
  assert main(["convert", str(trained), str(tmp_path / "x.safetensors"), "--to", "jldm"]) == 0
  assert main(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "w"), "--to", "jldm"]) == 0
  capsys.readouterr()
  (model, params), (_, others) = load(tmp_path / "w"), load(trained)
  np.testing.assert_array_equal(params["text"]["places"], others["text"]["places"])
  assert model.conditioners["text"].tower == NETWORK


@pytest.mark.slow
def test_the_step_reads_the_null_condition_alone(tower, trained):
  """A resumed run reads the same cache, and its steps hold no tower."""
  folders = list((trained / "conditions").iterdir())
  assert len(folders) == 1
  arrays = {path.stem: np.load(path) for path in folders[0].glob("0-0/*.npy")}
  assert arrays["text__tokens"].shape == (16, 6, NETWORK.width)
  assert len(np.unique(arrays["text__tokens"].reshape(16, -1), axis=0)) == 1, "of one class"
  train(captioned(tower, pooled=True), trained, devices=1)
  assert list((trained / "conditions").iterdir()) == folders


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (
      lambda stage: dataclasses.replace(stage, needs=stage.needs[:1]),
      "'text' has a tower, which is not among",
    ),
    (
      lambda stage: dataclasses.replace(
        stage,
        objective=dataclasses.replace(
          stage.objective,
          conditioners=(dataclasses.replace(stage.objective.conditioners[0], tower=NETWORK.clone(depth=3)),),
        ),
      ),
      "what the stage needs as 'text' is CLIPText",
    ),
  ],
)
def test_stages_that_do_not_fit_are_refused_before_anything_is_written(change, words, tower, tmp_path):
  experiment = captioned(tower)
  experiment = experiment.with_stage(change(experiment.stage("denoiser")))
  with pytest.raises(UserError, match=words):
    train(experiment, tmp_path / "w", devices=1)


def test_info_and_back_to_transformers(tower, tmp_path, capsys):
  assert main(["info", str(tower.parent / "text_encoder")]) == 0
  brief = capsys.readouterr().out
  assert "a text encoder" in brief and "CLIPText(vocabulary=10" in brief and "10 ids, 6 per text" in brief
  assert main(["info", str(tower)]) == 0
  assert "text: Tower, at step 0 of 0" in capsys.readouterr().out
  assert main(["convert", str(tower), str(tmp_path / "out"), "--to", "diffusers"]) == 0
  for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
    one, other = (
      (folder / name).read_bytes() for folder in (tower.parent / "text_encoder", tmp_path / "out")
    )
    assert one == other


@pytest.mark.slow
def test_the_page_runs_with_a_tiny_tower_in_the_place_of_the_published(tower, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shutil.copytree(tower.parent / "text_encoder", "stable-diffusion-v1-5/text_encoder")
  shutil.copytree(tower, "runs/clip")
  names: dict = {}
  for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "text.md").read_text(), re.S):
    exec(compile(block, "docs/text.md", "exec"), names)
  assert names["tokens"].shape == (2, 6, NETWORK.width) and names["pooled"].shape == (2, 5)
  assert names["stage"].objective.conditioners[0].tower == NETWORK
