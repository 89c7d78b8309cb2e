"""`jldm train`: trains the stages of an experiment in a workdir; the same command again resumes it."""

import argparse
from pathlib import Path

from jldm.cli import run_file, user_code
from jldm.config.experiment import Experiment
from jldm.config.override import override
from jldm.core.errors import UserError
from jldm.distributed import multihost, sharding
from jldm.runs.fork import fork
from jldm.runs.train import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--config", required=True, help="a Python file with experiment() -> Experiment")
  parser.add_argument("--workdir", required=True, help="the folder of the run")
  parser.add_argument(
    "--stage", metavar="NAME", help="train only this stage (default: all that are not finished, in order)"
  )
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="PATH=VALUE",
    help='e.g. denoiser.steps=500 or "denoiser.objective.process=Cosine()"; repeatable',
  )
  sharding.add_arguments(parser)
  parser.add_argument(
    "--from", dest="source", metavar="W", help="begin from a checkpoint of another workdir, with its --step"
  )
  parser.add_argument(
    "--step", type=int, metavar="N", help="the step of the checkpoint, of --stage or of the last stage begun"
  )
  parser.add_argument("--wandb", metavar="PROJECT", help="also log to this project of Weights & Biases")


def main(args: argparse.Namespace) -> None:
  experiment = load_config(args.config)
  for assignment in args.set:
    path, equals, text = assignment.partition("=")
    if not equals:
      raise UserError(f"--set {assignment}; expected PATH=VALUE, such as denoiser.steps=500")
    experiment = override(experiment, path, text)
  if (args.source is None) != (args.step is None):
    came = (
      f"--step {args.step} without --from" if args.source is None else f"--from {args.source} without --step"
    )
    raise UserError(f"{came}; expected --from W --step N, or neither")
  sharding.configure(args.devices, args)
  if args.source is not None:
    if multihost.is_primary():
      fork(experiment, Path(args.workdir), Path(args.source), args.step, args.stage)
    multihost.barrier("forked")
  train(
    experiment,
    args.workdir,
    (args.stage,) if args.stage else None,
    sharding.layout_from_args(args),
    args.wandb,
  )


def load_config(path: str) -> Experiment:
  """Runs a config file, which is Python, and returns its experiment.

  Raises:
    UserError: no such file, no experiment() in it, or an error while it runs (with its file and line).
  """
  make = vars(run_file(path, "--config")).get("experiment")
  with user_code(path, "--config"):
    experiment = make() if callable(make) else None
  if not isinstance(experiment, Experiment):
    raise UserError(
      f"--config {path!r} has no experiment() that returns an Experiment; see configs/digits.py"
    )
  return experiment
