"""Folders of diffusers' pipelines as tests/parity/pipeline.py saved them, written anew."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jldm.interop import safetensors
from tests.parity.drawn import parameters

KEPT = np.load(Path(__file__).parent / "parity" / "pipeline.npz")
STORED = json.loads(str(KEPT["told"]))
PROMPT, NEGATIVE, SCALE, STEPS = "a red cat", "blurred", 3.0, 20  # of tests/parity/pipeline.py


def write_pipeline(folder: Path, family: str, scheduler: str = "") -> Path:
  """The folder that diffusers saved, with another scheduler in it."""
  stored = STORED[family]
  for name, text in stored["texts"].items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  for seed, (name, shapes) in enumerate(sorted(stored["shapes"].items())):
    safetensors.write(folder / name, parameters(shapes, seed))
  if scheduler:
    change_scheduler(folder, family, scheduler)
  return folder


def change_scheduler(folder: Path, family: str, scheduler: str) -> None:
  path = folder / "scheduler" / "scheduler_config.json"
  path.write_text(json.dumps(STORED[family]["schedulers"][scheduler]))


def change_json(path: Path, **fields: Any) -> None:
  """Sets fields of a JSON object; those that are ... are taken out."""
  data = json.loads(path.read_text()) | fields
  path.write_text(json.dumps({name: value for name, value in data.items() if value is not ...}))
