"""Draws pictures from a workdir: python sample.py --workdir runs/digits --n 64 --label 3"""

import sys

from jldm.cli import main

if __name__ == "__main__":
  sys.exit(main(["sample", *sys.argv[1:]]))
