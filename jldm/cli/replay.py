"""`jldm replay`: were the logged steps computed as this program computes them? Nothing is written."""

import argparse
import re

from jldm.core.errors import UserError
from jldm.distributed import sharding
from jldm.inference.load import find_stage
from jldm.runs.replay import replay


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", required=True, help="a folder that train.py made")
  parser.add_argument(
    "--steps", required=True, metavar="A:B", help="lines of metrics.jsonl at steps A to B, both included"
  )
  parser.add_argument("--stage", metavar="NAME", help="default: the last that draws")
  parser.add_argument(
    "--devices", type=int, help="as many as it was trained on (default: as train.py would take)"
  )


def main(args: argparse.Namespace) -> None:
  match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", args.steps)
  if not match or int(match[1]) > int(match[2]):
    raise UserError(f"--steps {args.steps}; expected A:B with A not above B, such as 501:600")
  sharding.configure(args.devices)
  stage = args.stage or find_stage(args.workdir).stage.name
  found = replay(args.workdir, stage, int(match[1]), int(match[2]), args.devices)
  print(
    f"{stage}: {found.lines} lines, the last at step {found.last}, are equal to the bit; computed from the checkpoint "
    f"of step {found.start}"
  )
