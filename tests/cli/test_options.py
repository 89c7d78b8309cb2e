"""Every option of `sample` and `edit` reaches what it names, or is refused.

What is reached is seen by what the functions behind a command are called with and by the files that it
writes; no network runs.
"""

import argparse
import importlib
import json
from pathlib import Path

import jax
import numpy as np
from PIL import Image
import pytest

from jldm.cli import (
  COMMANDS,
  Parser,
  edit as edit_command,
  main,
  options,
  report as report_command,
  sample as sample_command,
)
from jldm.evaluation.page import html_page
from jldm.inference import edit, latent_edit
from jldm.inference.generate import Batch, Request, Samples
from jldm.inference.load import Origin
from jldm.media import images as pictures
from jldm.models.conditioners.degradation import Downsampled
from tests.configs import config, shrunk
from tests.edits import model_of

SIDE = 16
SHARED = (
  "--help",
  "--max-pixels",
  "--out",
  "--workdir",
  "--image",
  "--import",
  "--prompt",
  "--negative",
  "--onto-prompt",
)  # places, and texts of models that read captions, each with tests of its own
PROCESSES = ("--distributed", "--coordinator", "--processes", "--process")  # tests/distributed


def actions(command, kind=None):
  """The options of a command, or of one kind of edit."""
  parser = Parser()
  importlib.import_module(f"jldm.cli.{command}").add_arguments(parser)
  if kind is not None:
    parser = parser._subparsers._group_actions[0].choices[kind]
  return [action for action in parser._actions if action.option_strings]


def every_parser():
  yield from ((name, None) for name in COMMANDS if name != "edit")
  yield from (("edit", kind) for kind in edit_command.KINDS)


@pytest.mark.parametrize(("command", "kind"), every_parser())
def test_every_option_that_is_a_number_refuses_nan_and_infinity(command, kind):
  floats = [action for action in actions(command, kind) if action.type in (float, options.finite)]
  assert all(action.type is options.finite for action in floats)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999", "much"])
def test_a_number_is_finite(text):
  with pytest.raises(argparse.ArgumentTypeError, match=f"{text}; expected a finite number"):
    options.finite(text)


def frozen(value):
  """Arguments of a call, comparable: arrays by their values."""
  if isinstance(value, dict):
    return {str(key): frozen(each) for key, each in value.items()}
  if type(value) in (list, tuple):
    return [frozen(each) for each in value]
  if isinstance(value, (np.ndarray, np.generic, jax.Array)):
    return np.asarray(value).tolist()
  if isinstance(value, Request):
    return frozen(vars(value))
  return repr(value)


@pytest.fixture(scope="module")
def drawing():
  """A small model and random parameters, which nothing here runs."""
  return model_of(shrunk(config("fashion_mnist")))


@pytest.fixture
def seen(drawing, monkeypatch, tmp_path):
  """Calls of the functions behind `sample` and `edit`, which are replaced, in a folder with inputs."""
  calls = []
  model, params = drawing
  monkeypatch.chdir(tmp_path)
  random = np.random.default_rng(0)
  for name in ("A", "B"):
    Image.fromarray(random.integers(0, 256, (SIDE, SIDE), np.uint8)).save(f"{name}.png")
  mask = np.zeros((SIDE, SIDE), np.uint8)
  mask[4:9] = 255
  Image.fromarray(mask).save("M.png")
  np.savez("S.npz", images=random.integers(0, 256, (12, SIDE, SIDE, 1), np.uint8), labels=np.arange(12) % 3)

  def loaded(*args, **kwargs):
    calls.append(["load", frozen(args[1:]), frozen(kwargs)])
    return Origin("denoiser", 2), model, params

  def recorded(name, result):
    def call(model, params, *args, **kwargs):
      kwargs = {key: value for key, value in kwargs.items() if key not in ("progress", "is_there")}
      calls.append([name, frozen(args), frozen(kwargs)])
      calls.append([type(model.codec).__name__, frozen(vars(model.codec))])
      return result(*args)

    return call

  factor = lambda degradation: degradation.factor if isinstance(degradation, Downsampled) else 1
  copies = lambda images, *rest: np.repeat(images, rest[-2].n, 0)
  path = lambda images, count, *rest: np.repeat(images[:1], count, 0)
  moved = lambda images, along, amounts, *rest: np.repeat(images[None], len(along), 0).repeat(len(amounts), 1)
  results = {
    "image_to_image": copies,
    "inpaint": copies,
    "paired": copies,
    "restore": lambda images, degradation, *rest: (
      copies(images, *rest).repeat(factor(degradation), 1).repeat(factor(degradation), 2)
    ),
    "translate": lambda images, *rest: images,
    "interpolate": path,
    "traverse": moved,
    "attribute": lambda images, flags, space, controls, *rest: np.zeros((1 + controls, 4, 4, 4)),
    "invert": lambda images, *rest: latent_edit.Inverted(np.zeros((1, 4, 4, 4)), images, images, np.ones(1)),
  }
  for name, result in results.items():
    monkeypatch.setattr(edit if name in vars(edit) else latent_edit, name, recorded(name, result))
  monkeypatch.setattr(edit_command, "load_with_origin", loaded)
  monkeypatch.setattr(sample_command, "load_with_origin", loaded)
  monkeypatch.setattr(sample_command.workdirs, "read_experiment", lambda _: shrunk(config("fashion_mnist")))
  draw = lambda request, sampling: Samples(
    np.zeros((request.n, SIDE, SIDE, 1), np.uint8), np.zeros((request.n, 8, SIDE, SIDE, 1), np.uint8), {}
  )
  draw_batches = lambda request, sampling: (
    [range(request.n)],
    (each for each in [(range(request.n), Batch(*draw(request, sampling)[:2], np.ones(request.n, bool)))]),
  )
  monkeypatch.setattr(sample_command, "generate", recorded("generate", draw))
  monkeypatch.setattr(sample_command, "generate_batches", recorded("generate_batches", draw_batches))
  monkeypatch.setattr(pictures, "write_mp4", lambda path, *_: Path(path).write_text("film"))
  monkeypatch.setattr(pictures, "import_imageio", lambda: None)
  return calls


def effect(seen, out, words):
  """(exit code, all that a command called and wrote, the options that it records left out)."""
  seen.clear()
  code = main([*words, "--out", str(out)])
  written = {}
  for path in sorted(Path(out).rglob("*")):
    if path.suffix in (".png", ".npz"):
      with path.open("rb") as file:
        arrays = np.load(file) if path.suffix == ".npz" else None
        written[path.name] = "" if arrays else np.asarray(Image.open(file)).tobytes().hex()
    else:
      written[path.name] = ""
  return code, json.dumps([list(seen), written])


PAIR = "--examples S.npz --having 1 --without 0"
TABLE = {  # command or kind -> option -> its value and the words that it needs besides
  "sample": {
    "--n": ("3", ""),
    "--best": ("", ""),
    "--label": ("3", ""),
    "--sampler": ("heun", ""),
    "--steps": ("7", ""),
    "--grid": ("karras", ""),
    "--eta": ("0.5", "--sampler ddim"),
    "--guidance-scale": ("3", ""),
    "--guidance": ("apg", ""),
    "--guidance-interval": ("-3 4", ""),
    "--guidance-rescale": ("0.5", ""),
    "--guidance-channels": ("1", ""),
    "--negative-label": ("7", ""),
    "--size": ("64", ""),
    "--tile": ("3", ""),
    "--overlap": ("1", "--tile 3"),
    "--sigma-rel": ("0.1", ""),
    "--stage": ("denoiser", ""),
    "--seed": ("5", ""),
    "--batch-size": ("1", ""),
    "--devices": ("1", ""),
    "--fsdp": ("2", ""),
    "--tensor": ("2", ""),
    "--previews": ("", ""),
  },
  "image-to-image": {"--strength": ("0.3", ""), "--n": ("2", "")},
  "inpaint": {
    "--mask": ("M.png", "--margins 2"),
    "--margins": ("2", "--mask M.png"),
    "--strength": ("0.5", "--mask M.png"),
    "--n": ("2", "--mask M.png"),
    "--repeats": ("3", "--mask M.png"),
    "--jump": ("2", "--mask M.png --repeats 3"),
  },
  "invert": {},
  "interpolate": {
    "--to": ("A.png", "--to B.png"),
    "--count": ("3", "--to B.png"),
    "--space": ("latents", "--to B.png"),
    "--strength": ("0.4", "--to B.png --space latents"),
    "--film": ("", "--to B.png"),
  },
  "translate": {"--onto": ("3", ""), "--strength": ("0.4", "--onto 3"), "--n": ("2", "")},
  "restore": {
    "--degradation": ("blur", ""),
    "--noise": ("0.4", "--degradation blur"),
    "--sigma": ("3", "--degradation blur"),
    "--factor": ("2", "--degradation downsample"),
    "--mask": ("M.png", "--degradation missing"),
    "--mean": ("", "--degradation blur --n 2"),
    "--n": ("2", ""),
  },
  "directions": {
    "--channel": ("2", "--channel 1"),
    "--place": ("1,1", "--channel 1"),
    "--examples": ("S.npz", "--having 1 --without 0"),
    "--having": ("2", PAIR),
    "--without": ("2", PAIR),
    "--reach": ("3", "--channel 1"),
    "--count": ("3", "--channel 1"),
    "--controls": ("1", "--channel 1"),
    "--space": ("noise", PAIR),
    "--strength": ("0.3", "--channel 1"),
  },
}
EVERY_EDIT = {  # as TABLE
  "--best": ("", ""),
  "--label": ("4", ""),
  "--sampler": ("heun", ""),
  "--steps": ("7", ""),
  "--grid": ("karras", ""),
  "--eta": ("0.5", "--sampler ddim"),
  "--guidance-scale": ("3", "--label 4"),
  "--seed": ("5", ""),
}
NEEDED = {"inpaint": "--mask M.png", "interpolate": "--to B.png", "directions": "--channel 1"}
FULL = {
  name: table if name == "sample" else {key: (value, f"{NEEDED.get(name, '')} {words}".strip())
                                        for key, (value, words) in EVERY_EDIT.items()} | table
  for name, table in TABLE.items()
}  # fmt: skip
SET = [(name, option) for name, table in FULL.items() for option in table]


def words_of(name):
  return (
    [name, "--workdir", "W"] if name == "sample" else ["edit", name, "--workdir", "W", "--image", "A.png"]
  )


@pytest.mark.parametrize("name", FULL)
def test_the_table_has_every_option(name):
  actual = actions(name) if name == "sample" else actions("edit", name)
  actual = {action.option_strings[-1] for action in actual}
  assert actual - {*SHARED, *PROCESSES, "--overwrite"} == FULL[name].keys()


@pytest.mark.parametrize(("name", "option"), SET, ids=[f"{name}{option}" for name, option in SET])
def test_every_option_reaches_what_it_names(seen, name, option):
  value, further = FULL[name][option]
  words = [*words_of(name), *further.split()]
  _, before = effect(seen, "before", words)
  code, after = effect(seen, "after", [*words, option, *value.split()])
  assert code == 0 and after != before


@pytest.mark.parametrize(
  ("name", "given", "message"),
  [
    ("restore", "--degradation noise --noise 1 --sigma 5", "--sigma 5.0: expected only with --degr"),
    ("restore", "--degradation noise --noise 1 --factor 2", "--factor 2: expected only with --degr"),
    ("restore", "--degradation noise --noise 1 --mask M.png", "--mask M.png: expected only with --degr"),
    ("restore", "--degradation blur --factor 4", "--factor 4: expected only with --degradation downsample"),
    ("restore", "--degradation blur --mask M.png", "--mask M.png: expected only with --degr"),
    ("restore", "--degradation missing --mask M.png --sigma 2", "--sigma 2.0: expected only with --degr"),
    ("restore", "--noise 0.5", "--noise 0.5: expected only with --degradation"),
    ("restore", "--sigma 2", "--sigma 2.0: expected only with --degradation blur"),
    ("restore", "--degradation noise", "--degradation noise without --noise"),
    ("inpaint", "--mask M.png --jump 2", "--jump 2: expected only with --repeats of at least 2"),
    ("translate", "--strength 0.5", "--strength 0.5: expected only with --onto CLASS"),
    ("translate", "--onto 3 --n 2", "--n 2: expected only with a model that was trained on pairs"),
    ("directions", "--channel 1 --having 2", "--having 2: expected only with --examples"),
    ("directions", "--channel 1 --without 2", "--without 2: expected only with --examples"),
    (
      "directions",
      "--examples S.npz --having 1 --without 0 --place 0,0",
      "--place 0,0: expected only with --channel",
    ),
    ("directions", "--channel 1 --controls -1", "--controls -1; expected at least 0"),
    ("image-to-image", "--eta -7", "sampler"),
    ("image-to-image", "--sampler ddim --eta -7", "eta=-7.0; expected numbers in [0, 1]"),
    ("image-to-image", "--sampler edict --eta 1", "has no eta"),
    ("invert", "--eta 1", "has no eta"),
    ("image-to-image", "--guidance-scale 3", "--guidance-scale 3.0 without a class to guide to"),
    ("image-to-image", "--guidance-scale nan --label 3", "--guidance-scale: nan; expected a finite number"),
    ("image-to-image", "--guidance-scale 1e30 --label 3", "guidance_scale=1e+30; expected numbers in"),
    ("restore", "--degradation noise --noise inf", "--noise: inf; expected a finite number"),
    ("directions", "--channel 1 --reach nan", "--reach: nan; expected a finite number"),
    ("sample", "--guidance-scale 3 --label -1", "--guidance-scale 3.0 without a class to guide to"),
    ("sample", "--guidance apg --label -1", "--guidance apg without a class to guide to"),
    ("sample", "--guidance-scale 1 --negative-label 7", "--negative-label 7 with a guidance scale of 1"),
    ("sample", "--guidance-scale 1 --guidance-rescale 0.5", "--guidance-rescale 0.5 with a guidance scale"),
    ("sample", "--guidance-scale 1 --guidance-interval -1 1", "--guidance-interval -1.0 1.0 with a guid"),
    ("sample", "--guidance-scale 1 --guidance-channels 3", "--guidance-channels 3 with a guid"),
    ("sample", "--guidance-channels -3", "channels=-3 of guidance; expected"),
    ("sample", "--guidance-scale 1e30", "guidance_scale=1e+30; expected numbers in"),
    ("sample", "--label 1099511627776", "--label 1099511627776; expected a class by its number"),
    ("sample", f"--label {2**70}", f"{2**70}"),
    ("sample", "--devices 0", "devices=0; expected at least 1"),
    ("sample", "--devices -1", "devices=-1; expected at least 1"),
  ],
)  # fmt: skip
def test_an_option_that_would_reach_nothing_is_refused(seen, capsys, name, given, message):
  assert main([*words_of(name), *given.split(), "--out", "O"]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1 and not Path("O").exists()


def test_a_page_of_others_is_never_replaced(tmp_path, capsys):
  (tmp_path / "mine.html").write_text("<html>mine</html>")
  assert main(["report", "W", "--out", str(tmp_path / "mine.html")]) == 2
  assert "mine.html' was not made by jldm report and is never replaced" in capsys.readouterr().err
  assert (tmp_path / "mine.html").read_text() == "<html>mine</html>"
  (tmp_path / "ours.html").write_text(html_page("title", "lead", []))
  report_command.check_replaceable(tmp_path / "ours.html")
