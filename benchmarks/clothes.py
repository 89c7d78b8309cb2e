r"""Whether captions are obeyed: a workdir of configs/clothes.py over scales of guidance, and a sheet.

  taskset -c 0 python -m benchmarks.clothes train runs/clothes
  python -m benchmarks.clothes train runs/joint --lender runs/clothes \
      --set "denoiser.objective.network.block=JointBlock(heads=4)"
  python -m benchmarks.clothes measure runs/clothes

Expects `jldm prepare clothes`.  `train` writes the CPU-seconds of both stages, compilation and encoding
included, to WORKDIR/cost.json.  `measure` prints a table of 2,000 samples for each split, ten guided steps each,
and writes the sheet to --docs.  `shuffled` are the samples of `test` judged by one another's captions.
"""

import argparse
import dataclasses
import json
from pathlib import Path
import shutil
import time

import jax
import numpy as np
from PIL import Image

from benchmarks.conditioned import ROOT
from jldm.cli.train import load_config
from jldm.config.experiment import Evaluation
from jldm.config.override import override
from jldm.core.specs import Loaded
from jldm.data.clothes import Scene, write_caption
from jldm.evaluation import captions
from jldm.inference import edit
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.inference.model import Model
from jldm.media import images as pictures, sheets
from jldm.models.codecs import codec as codecs
from jldm.runs import train as training
from jldm.samplers.guidance import ClassifierFree
from jldm.storage import workdir as workdirs

FIGURES = ("class", "colour", "swapped", "all")
SHEET = (  # two pairs of training, and two that no training picture has
  write_caption(Scene((0, 8), (4, 0)), False),
  write_caption(Scene((2, 9), (5, 3)), True),
  write_caption(Scene((0, 0), (2, 8)), True),
  write_caption(Scene((3, 9), (1, 1)), False),
)
COLUMNS = 8


def train(workdir: Path, changes: list[str], lender: Path | None) -> None:
  """Trains what is not finished, on one CPU device, and writes what it cost.

  lender: a run whose autoencoder is taken.
  """
  found = load_config(str(ROOT / "configs" / "clothes.py"))
  for change in changes:
    found = override(found, *change.split("=", 1))
  if lender and not workdir.exists():
    workdirs.claim_workdir(workdir, found)
    shutil.copytree(lender / "autoencoder", workdir / "autoencoder")
  cost = workdir / "cost.json"
  costs = json.loads(cost.read_text()) if cost.exists() else {}
  for stage in found.names:
    start = time.process_time()
    training.train(found, workdir, (stage,), devices=1)
    cost.write_text(json.dumps(costs := costs | {stage: time.process_time() - start}))


def coded(model: Model, params: dict, images: np.ndarray) -> np.ndarray:
  """What the autoencoder makes of pictures uint8."""
  decode = jax.jit(lambda codec, z: codecs.decode_latents(Loaded(model.codec, codec), z))
  return pictures.to_uint8(decode(params["codec"], edit.encode_images(model, params["codec"], images)))


def row(name: str, images: np.ndarray, texts: list[str]) -> str:
  """A row of the table."""
  record = captions.score(captions.clothes, images, texts)
  cells = [f"{record[figure]['value']:.3f}" if figure in record else "" for figure in FIGURES]
  return f"| {name} | {' | '.join(cells)} |"


def measure(workdir: Path, scales: list[float], n: int, docs: Path) -> None:
  """Prints the table, and writes the sheet."""
  model, params = load(workdir)
  data = workdirs.read_experiment(workdir).data
  of_split = lambda split: captions.open_captions(data, Evaluation(captions=split), n)
  opened = {split: of_split(split) for split in ("test", "unseen")}
  print(f"| | {' | '.join(FIGURES)} |\n|---|{'---|' * len(FIGURES)}")
  for split, each in opened.items():
    print(row(f"real, {split}", each.images, each.captions))
    print(row(f"reconstructed, {split}", coded(model, params, each.images), each.captions), flush=True)
  draw = lambda texts, scale: (
    generate(
      model,
      params,
      Request(n=len(texts), seed=0, given={"text": texts}),
      dataclasses.replace(model.sampling, guidance=ClassifierFree(scale)),
      batch_size=250,
      devices=1,
    ).data
  )
  for scale in scales:
    for split, each in opened.items():
      images = draw(each.captions, scale)
      print(row(f"guidance {scale:g}, {split}", images, each.captions), flush=True)
      if split == "test":
        shuffled = each.captions[1:] + each.captions[:1]
        print(row(f"guidance {scale:g}, shuffled", images, shuffled), flush=True)
  images = draw([text for text in SHEET for _ in range(COLUMNS)], scales[-1])
  rows = [images[start : start + COLUMNS] for start in range(0, len(images), COLUMNS)]
  Image.fromarray(sheets.tile_rows(rows, 2)).save(docs / "clothes.png")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("what", choices=["train", "measure"])
  parser.add_argument("workdir", type=Path)
  parser.add_argument("--set", action="append", default=[])
  parser.add_argument("--lender", type=Path, help="a run whose autoencoder is taken")
  parser.add_argument("--scales", type=float, nargs="+", default=[1, 2, 3, 5])
  parser.add_argument("--n", type=int, default=2000)
  parser.add_argument("--docs", type=Path, default=ROOT / "docs")
  args = parser.parse_args()
  if args.what == "train":
    train(args.workdir, args.set, args.lender)
  else:
    measure(args.workdir, args.scales, args.n, args.docs)


if __name__ == "__main__":
  main()
