"""Pipelines that jldm wrote, drawn from by diffusers: the log is round_trip_pipeline.txt.

python tests/parity/round_trip_pipeline.py write FOLDER    where jldm is, with the repository on PYTHONPATH
python tests/parity/round_trip_pipeline.py check FOLDER    where torch and diffusers are: prints the log
"""

from pathlib import Path
import sys

import numpy as np

HERE = Path(__file__).parent
FAMILIES = {"sd1": "ddim", "sd2": "ddim", "xl": "euler", "inpaint": "ddim"}


def write(folder: Path) -> None:
  """By family, what diffusers saved is read and written anew."""
  from jldm.interop.pipeline import read_pipeline, save_pipeline
  from tests.pipelines import write_pipeline

  for family in FAMILIES:
    save_pipeline(folder / family, read_pipeline(write_pipeline(folder / f"{family}_source", family)))


def check(folder: Path) -> None:
  import diffusers
  from pipeline import draw, masked
  import torch

  print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
  kept = np.load(HERE / "pipeline.npz")
  for family, scheduler in FAMILIES.items():
    made = diffusers.DiffusionPipeline.from_pretrained(folder / family)
    further = masked(made, kept["image"], kept["known"]) if family == "inpaint" else {}
    far = np.abs(draw(made, kept["latents"], **further) - kept[f"{family}/{scheduler}"]).max()
    kinds = ", ".join(type(each).__name__ for each in made.components.values() if each is not None)
    print(f"{family}: {type(made).__name__} of {kinds}; max|difference| of its picture {far:.1e}")


if __name__ == "__main__":
  {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
