"""`jldm report WORKDIR`: a run as one page that opens anywhere."""

import argparse
from pathlib import Path

from jldm.core.files import replace_file
from jldm.distributed import sharding
from jldm.evaluation import report


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("workdir", metavar="WORKDIR", help="a folder that train.py made")
  parser.add_argument("--out", help="the page (default: WORKDIR/report.html)")
  parser.add_argument("--devices", type=int, help="how many devices draw the trajectory (default: all)")


def main(args: argparse.Namespace) -> None:
  workdir = Path(args.workdir)
  out = Path(args.out) if args.out else workdir / "report.html"
  sharding.configure(args.devices)
  text = report.build_report(workdir, args.devices)
  with replace_file(out) as file:
    file.write(text.encode())
  print(f"{out}: {len(text) / 1e6:.1f} MB")
