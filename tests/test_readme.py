"""What README.md says is so: every path exists, every command parses, every config and option is real."""

import argparse
import importlib
import json
from pathlib import Path
import re
import shlex
import shutil

import jax
import numpy as np
import pytest

from jldm.cli import COMMANDS, Parser, import_option, main
from jldm.interop import locate, safetensors
from jldm.storage import workdir as workdirs
from tests.configs import config
from tests.parity.drawn import SD, old_flax, parameters, places
from tests.pipelines import STORED, write_pipeline

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.S)
DOCS = [path.read_text().replace("\\\n", " ") for path in (ROOT / "docs").glob("*.md")]
BLOCKS += [block for text in DOCS for block in re.findall(r"```(sh)\n(.*?)```", text, re.S)]
LINES = [
  line.split("  #")[0].strip()
  for language, text in BLOCKS
  if language == "sh"
  for line in text.splitlines()
  if line
]
PYTHON = [text for language, text in BLOCKS if language == "python"]
PAGE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "pretrained.md").read_text(), re.S)
DOORS = {"train.py": "train", "sample.py": "sample"}


def command_of(line: str) -> list[str] | None:
  """The arguments after `jldm`, where the line is one of ours."""
  words = shlex.split(line)
  if words[0] == "jldm":
    return words[1:]
  return [DOORS[words[1]], *words[2:]] if words[:1] == ["python"] and words[1] in DOORS else None


def test_it_is_short():
  assert len(README.splitlines()) < 130


def test_every_line_is_a_command_of_ours_or_a_known_one():
  unknown = [
    line
    for line in LINES
    if not command_of(line)
    and shlex.split(line)[0] not in ("make", "pip", "apt-get")
    and not line.startswith(("python -m benchmarks.", "python -m tests.faults."))
  ]
  assert not unknown and sum(bool(command_of(line)) for line in LINES) >= 7


@pytest.mark.parametrize("line", [line for line in LINES if command_of(line)])
def test_commands_parse(line):
  name, *options = command_of(line)
  assert name in COMMANDS
  parser = Parser(parents=[import_option()])
  importlib.import_module(f"jldm.cli.{name}").add_arguments(parser)
  args = parser.parse_args(options)
  assert isinstance(args, argparse.Namespace)
  if getattr(args, "config", None) and "--import" not in options:  # tests/test_docs.py runs that one
    from jldm.cli.train import load_config
    from jldm.config.override import override

    experiment = load_config(str(ROOT / args.config))
    for assignment in args.set:
      experiment = override(experiment, *assignment.split("=", 1))


def test_make_targets_exist():
  makefile = (ROOT / "Makefile").read_text()
  targets = [shlex.split(line)[1] for line in LINES if line.startswith("make ")]
  assert targets and all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_every_path_exists():
  braces = lambda text: (
    [text.replace(m[0], part) for part in m[1].split(",")] if (m := re.search(r"\{(.*?)\}", text)) else [text]
  )
  named = [
    path for text in re.findall(r"`((?:jldm|configs|tests|docs)/[^`]*)`", README) for path in braces(text)
  ]
  named += re.findall(r"\]\(([^)]+)\)", README)
  assert len(named) > 15 and not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_pages_link_to_what_is_there_and_have_their_tables(page):
  text = page.read_text()
  links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
  assert not [link for link in links if not (page.parent / link).exists()]
  assert not re.search(r"<!-- (?!end)\w+ -->\s*<!-- end -->", text)


@pytest.mark.slow
def test_the_python_example_runs(tmp_path, monkeypatch):
  """On a shrunk workdir in the place that the README names."""
  from jldm.runs.train import train
  from tests.configs import shrunk

  monkeypatch.chdir(tmp_path)
  train(shrunk(config("digits")), "runs/digits", devices=1)
  names: dict = {}
  exec(compile(PYTHON[0], "README.md", "exec"), names)
  assert names["samples"].data.shape == (8, 32, 32, 1) and names["sheet"].size[0] > 32


@pytest.mark.slow
def test_the_published_autoencoder_runs(tmp_path, monkeypatch):
  """What README.md and docs/pretrained.md say of it, with a tiny one in the place that they name."""
  monkeypatch.chdir(tmp_path)
  shutil.copytree(SD, "sd-vae-ft-mse")
  assert main(["convert", "sd-vae-ft-mse", "runs/sd", "--to", "jldm"]) == 0
  stored = json.loads(str(np.load(SD.parent / "dit.npz")["told"]))["lightningdit"]
  arrays = parameters(stored["shapes"], stored["seed"]) | {"pos_embed": places(4, 32)}
  safetensors.write("lightningdit-xl.safetensors", arrays)
  write_pipeline(Path("stable-diffusion-v1-5"), "sd1")
  assert main(["convert", "stable-diffusion-v1-5", "runs/sd15", "--to", "jldm"]) == 0
  given = {
    "images": np.zeros((2, 16, 16, 3), np.uint8),
    "keys": jax.random.split(jax.random.key(0), 2),
    "old": {"params": old_flax(safetensors.read(SD / locate.WEIGHTS))},
    "experiment": config("digits"),
  }
  names = dict(given)
  exec(compile(PYTHON[1], "README.md", "exec"), names)
  assert names["images"].shape == (2, 16, 16, 3) and names["latents"].shape == (2, 2, 2, 4)
  whole, first, *others = PAGE
  exec(compile(whole, "docs/pretrained.md", "exec"), drawn := {})
  assert drawn["pictures"].shape == (4, 16, 16, 3)
  exec(compile(first, "docs/pretrained.md", "exec"), names | given)
  exec(compile("".join(others), "docs/pretrained.md", "exec"), names := names | given)
  assert (
    workdirs.resolve_pretrained(names["experiment"]).stage("autoencoder").start
    == names["tuned"].start
    == "runs/sd"
  )
  assert names["mean"].shape == (2, 2, 2, 4) and Path("latents.npz").exists()
  assert (
    safetensors.read(f"unet/{locate.WEIGHTS}").keys()
    == STORED["sd1"]["shapes"][f"unet/{locate.WEIGHTS}"].keys()
  )
