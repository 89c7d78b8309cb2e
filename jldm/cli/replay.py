"""`jldm replay`: computes logged steps again and compares them to the bit; writes nothing."""

import argparse
import re

from jldm.cli import options
from jldm.core.errors import UserError
from jldm.distributed import sharding
from jldm.inference.model import find_stage
from jldm.runs.replay import replay


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_shared(parser, "--workdir", "--stage")
  parser.add_argument(
    "--steps", required=True, metavar="A:B", help="lines of metrics.jsonl at steps A to B, both included"
  )
  options.add_shared(
    parser, "--devices", help="as many as the run was trained on (default: those that jldm train takes)"
  )


def main(args: argparse.Namespace) -> None:
  match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", args.steps)
  if not match or int(match[1]) > int(match[2]):
    raise UserError(f"--steps {args.steps}; expected A:B with A not above B, such as 501:600")
  sharding.configure(args.devices)
  stage = args.stage or find_stage(args.workdir).stage.name
  replayed = replay(args.workdir, stage, int(match[1]), int(match[2]), args.devices)
  print(
    f"{stage}: {replayed.lines} lines, the last at step {replayed.last}, are equal to the bit; "
    f"computed from the checkpoint of step {replayed.start}"
  )
