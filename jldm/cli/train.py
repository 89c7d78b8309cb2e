"""`jldm train`: both stages of an experiment, in a workdir; the same command again goes on where it stopped."""

import argparse
import importlib.util
from pathlib import Path
import sys

from jldm.config.experiment import Experiment
from jldm.config.override import override
from jldm.core.errors import UserError
from jldm.distributed import sharding
from jldm.runs import stages
from jldm.storage import workdir as workdirs


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", required=True, help="a Python file with experiment() -> Experiment")
  parser.add_argument("--workdir", required=True, help="where the run keeps everything")
  parser.add_argument("--stage", choices=workdirs.STAGES, help="this stage alone (default: what is not finished, in order)")
  parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE",
                      help="e.g. denoiser.steps=500 or \"denoiser.objective.process=Cosine()\"; repeatable")
  sharding.add_arguments(parser)
  parser.add_argument("--wandb", metavar="PROJECT", help="log to this project of Weights & Biases as well")


def main(args: argparse.Namespace) -> None:
  experiment = load_config(args.config)
  for assignment in args.set:
    path, equals, text = assignment.partition("=")
    if not equals:
      raise UserError(f"--set {assignment}; expected PATH=VALUE, such as denoiser.steps=500")
    experiment = override(experiment, path, text)
  sharding.configure(args.devices, args)
  stages.train(experiment, args.workdir, (args.stage,) if args.stage else workdirs.STAGES, sharding.asked(args), args.wandb)


def load_config(path: str) -> Experiment:
  """Runs a config file, the caller's own Python, and returns its experiment.

  Raises:
    UserError: no such file, or no experiment() in it.
  """
  file = Path(path)
  if not file.is_file():
    near = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
    raise UserError(f"config {path!r} does not exist; " + (f"there are {', '.join(near[:5])}" if near else "give a Python file"))
  spec = importlib.util.spec_from_file_location(f"jldm_config_{file.stem}", file)
  if spec is None:
    raise UserError(f"config {path!r} is not a Python file; give one with experiment() -> Experiment")
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses look their module up
  spec.loader.exec_module(module)
  experiment = module.experiment() if hasattr(module, "experiment") else None
  if not isinstance(experiment, Experiment):
    raise UserError(f"config {path!r} has no experiment() that returns an Experiment; see configs/digits.py")
  return experiment
