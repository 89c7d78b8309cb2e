"""`jldm report WORKDIR`: writes one self-contained HTML page about a run."""

import argparse
import os
from pathlib import Path

from jldm.cli import options
from jldm.core.errors import UserError
from jldm.core.files import replace_file
from jldm.distributed import sharding
from jldm.evaluation import report
from jldm.evaluation.page import GENERATOR

HEAD_BYTES = 4096  # of a page, which name who made it


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("workdir", metavar="WORKDIR", help="a folder that jldm train made")
  parser.add_argument("--out", help="the page (default: WORKDIR/report.html)")
  options.add_shared(parser, "--devices", help="number of devices that draw the trajectory (default: all)")


def main(args: argparse.Namespace) -> None:
  workdir = Path(args.workdir)
  out = Path(args.out) if args.out else workdir / "report.html"
  check_replaceable(out)
  options.check_writable(out.parent)
  sharding.configure(args.devices)
  text = report.build_report(workdir, args.devices)
  with options.writing(out), replace_file(out) as file:
    file.write(text.encode(errors="replace"))  # JSON may have half a surrogate pair
  print(f"{out}: {len(text) / 1e6:.1f} MB")


def check_replaceable(out: Path) -> None:
  """Raises a UserError for a file that is no page of ours, and is never replaced."""
  if out.is_file():
    with out.open("rb") as file:
      if GENERATOR.encode() in file.read(HEAD_BYTES):
        return
  if os.path.lexists(out):
    raise UserError(f"{str(out)!r} was not made by jldm report and is never replaced; choose another --out")
