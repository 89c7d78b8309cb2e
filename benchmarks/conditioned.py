"""Denoisers that are told of a picture, measured on held-out ones.

  taskset -c 0 python -m benchmarks.conditioned train runs/conditioned
  python -m benchmarks.conditioned measure runs/conditioned

Expects `jldm prepare idx --source /usr/share/datasets/fashion-mnist --name fashion_mnist --pad 2` and `jldm prepare photos
--size 64`.  `train` trains what is not finished, on one CPU device; runs that have the same autoencoder take it from the
first of them.  `measure` writes conditioned.md and its sheets to --docs.
"""

import argparse
import json
from pathlib import Path
import shutil
import time

from jldm import sharding, stages, workdir as workdirs
from jldm.cli.train import load_config
from jldm.experiment import Experiment, override

ROOT = Path(__file__).resolve().parents[1]
RESTORE = {"denoiser.objective.condition": "Paired(degradation=Mixture())"}
SKETCH = {"denoiser.objective.condition": "Paired(degradation=Edges())"}
RUNS = {  # name -> config, what is changed of it, and whose autoencoder it has
  "inpaint": ("fashion_inpaint", {}, None),
  "colour": ("photos_colour", {}, None),
  "plain": ("fashion_mnist", {"denoiser.steps": "8000", "sampling.guidance_scale": "1"}, "inpaint"),
  "restore": ("fashion_inpaint", RESTORE, "inpaint"),
  "sketch": ("photos_colour", SKETCH, "colour"),
}


def experiment(name: str, data_dir: str) -> Experiment:
  config, changes, _ = RUNS[name]
  found = load_config(str(ROOT / "configs" / f"{config}.py"))
  for path, text in (changes | {"data.data_dir": data_dir}).items():
    found = override(found, path, text)
  return found


def train(folder: Path, name: str, data_dir: str) -> None:
  """Trains one of RUNS, and writes the CPU-seconds of its stages, compilation and encoding included, to NAME.json."""
  found, workdir, lender, cost = experiment(name, data_dir), folder / name, RUNS[name][2], folder / f"{name}.json"
  costs = json.loads(cost.read_text()) if cost.exists() else {}
  if lender and not workdir.exists():
    workdirs.claim(workdir, found)
    shutil.copytree(folder / lender / "autoencoder", workdir / "autoencoder")
  for stage in workdirs.STAGES:
    if stage not in costs:
      start = time.process_time()
      stages.train(found, workdir, (stage,), devices=1)
      cost.write_text(json.dumps(costs := costs | {stage: time.process_time() - start}))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("what", choices=("train", "measure"))
  parser.add_argument("folder", type=Path)
  parser.add_argument("--data-dir", default="data")
  parser.add_argument("--docs", type=Path, default=ROOT / "docs")
  parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS), metavar="RUN", help=" / ".join(RUNS))
  options = parser.parse_args()
  sharding.configure(1)
  if options.what == "train":
    for name in options.only:
      train(options.folder, name, options.data_dir)


if __name__ == "__main__":
  main()
