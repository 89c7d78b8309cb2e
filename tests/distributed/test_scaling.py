"""What docs/scaling.md shows is so, as far as it can be told without a cluster: scripts and manifests
parse, ours are real.
"""

import argparse
import importlib
import math
from pathlib import Path
import re
import shlex
import subprocess

import pytest
import yaml

from jldm.cli import COMMANDS, Parser
from jldm.cli.train import load_config
from jldm.config.override import override
from jldm.distributed import sharding
from jldm.nn.remat import POLICIES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.S)
MANIFESTS = [yaml.safe_load(text) for language, text in BLOCKS if language == "yaml"]
COMMAND = re.compile(rf"\bjldm ((?:{'|'.join(COMMANDS)})\b[^\"'&|;\n]*)")


def pod(manifest: dict) -> tuple[dict, dict]:
  """The job of a JobSet, and what its pods are."""
  job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
  return job, job["template"]["spec"]


def commands() -> list[list[str]]:
  """The arguments of every `jldm …` of the page, with numbers in place of a shell's variables."""
  shown = [shlex.split(re.sub(r"\$\w+", "1", line)) for _, text in BLOCKS for line in COMMAND.findall(text)]
  return shown + [pod(manifest)[1]["containers"][0]["command"][1:] for manifest in MANIFESTS]


def test_there_is_one_of_each():
  assert {language for language, _ in BLOCKS} == {"sh", "bash", "python", "yaml"} and len(commands()) >= 11


@pytest.mark.parametrize("script", [text for language, text in BLOCKS if language == "bash"])
def test_scripts_parse(script):
  done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
  assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_commands_are_ours(arguments):
  parser = Parser()
  importlib.import_module(f"jldm.cli.{arguments[0]}").add_arguments(parser)
  args = parser.parse_args(arguments[1:])
  experiment = load_config(str(ROOT / args.config)) if hasattr(args, "config") else None
  for assignment in getattr(args, "set", []):
    experiment = override(experiment, *assignment.split("=", 1))
  given = [getattr(args, name, None) for name in ("coordinator", "processes", "process")]
  assert given == [None] * 3 or (None not in given and ":" in given[0])


def test_options_named_in_the_text_exist():
  parser = argparse.ArgumentParser()
  sharding.add_arguments(parser)
  ours = {option for action in parser._actions for option in action.option_strings}
  prose = re.sub(r"```.*?```", "", PAGE, flags=re.S)
  named = {span.split()[0] for span in re.findall(r"`(--[^`]+)`", prose)}
  assert named - ours == {"--set", "--gpus-per-task", "--worker=all"}
  assert not {option for option in ours - {"-h", "--help"} if option not in prose}


def test_rules_and_policies_are_those_of_the_code():
  for pattern, axis in sharding.TENSOR_PARALLEL:
    row = next(
      line
      for line in PAGE.splitlines()
      if f"`{pattern.removesuffix('$').replace('|', chr(92) + '|')}`" in line
    )
    assert {-1: "the last", -2: "the one before"}[axis] in row
  assert f"fewer than {sharding.SMALLEST_SPLIT:,} values" in PAGE
  for name, meaning in sharding.LOGICAL_AXES:
    assert f"`{name}`" in PAGE and all(
      f"`{axis}`" in PAGE for axis in ([meaning] if isinstance(meaning, str) else meaning)
    )
  table = PAGE[PAGE.index("network.remat=` |") :]
  assert re.findall(r"^\| `(\w+)`", table[: table.index("\n\n")], re.M) == list(POLICIES)


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_pod_a_host(manifest):
  """As many pods as a slice of that topology has hosts, none of which is tried again by itself."""
  job, spec = pod(manifest)
  container = spec["containers"][0]
  chips = math.prod(map(int, spec["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
  assert (
    job["parallelism"] == job["completions"] == chips / container["resources"]["limits"]["google.com/tpu"]
  )
  assert (
    job["backoffLimit"] == 0
    and spec["restartPolicy"] == "Never"
    and spec["terminationGracePeriodSeconds"] > 25
  )
  assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] == container["name"]
  assert {mount["name"] for mount in container["volumeMounts"]} == {
    volume["name"] for volume in spec["volumes"]
  }
