"""Trains the stages of an experiment: python train.py --config configs/digits.py --workdir runs/digits"""

import sys

from jldm.cli import main

if __name__ == "__main__":
  sys.exit(main(["train", *sys.argv[1:]]))
