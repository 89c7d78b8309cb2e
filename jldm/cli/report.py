"""`jldm report WORKDIR`: writes one self-contained HTML page about a run."""

import argparse
from pathlib import Path

from jldm.cli import options
from jldm.core.files import replace_file
from jldm.distributed import sharding
from jldm.evaluation import report


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("workdir", metavar="WORKDIR", help="a folder that jldm train made")
  parser.add_argument("--out", help="the page (default: WORKDIR/report.html)")
  options.add_shared(parser, "--devices", help="number of devices that draw the trajectory (default: all)")


def main(args: argparse.Namespace) -> None:
  workdir = Path(args.workdir)
  out = Path(args.out) if args.out else workdir / "report.html"
  sharding.configure(args.devices)
  text = report.build_report(workdir, args.devices)
  with replace_file(out) as file:
    file.write(text.encode(errors="replace"))  # JSON may have half a surrogate pair
  print(f"{out}: {len(text) / 1e6:.1f} MB")
