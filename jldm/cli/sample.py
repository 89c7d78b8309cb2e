"""`jldm sample`: pictures from a workdir, as PNGs or one .npz."""

import argparse
import dataclasses
from pathlib import Path
import tempfile

import numpy as np
from tqdm import tqdm

from jldm.cli.prepare import parse_size
from jldm.config import presets
from jldm.core.errors import UserError
from jldm.distributed import multihost, sharding
from jldm.inference import pipeline
from jldm.media import images as pictures
from jldm.models.codecs.tiling import Blended, Exact
from jldm.samplers.grid import GRIDS
from jldm.storage import workdir as workdirs

PREVIEWS, MOST_PREVIEWED = 8, 10  # steps and pictures on previews.png
ASKED = (  # told where given
  "eta", "grid", "guidance_interval", "guidance_rescale", "negative_label", "size", "sigma_rel", "tile", "overlap", "best",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", required=True, help="a folder that train.py made; nothing else is needed")
  parser.add_argument("--n", type=int, default=64, help="how many pictures (default: 64)")
  parser.add_argument("--label", default="all", help="all (default), a class, a comma list such as 3,5, or -1: unconditional")
  parser.add_argument("--sampler", help=f"one of {', '.join(sorted(presets.SAMPLERS))}, or one written out, such as "
                      "\"Churn(Heun(), gamma=0.1)\" (default: the experiment's)")
  parser.add_argument("--steps", type=int, help="steps of the sampler (default: the experiment's)")
  parser.add_argument("--grid", help=f"where the steps stand: {', '.join(GRIDS)} (default: the experiment's)")
  parser.add_argument("--eta", type=float, help="noise of ddim or dpmpp: 0 is deterministic, 1 ancestral or SDE")
  parser.add_argument("--guidance-scale", type=float, help="1 is none (default: the experiment's)")
  rules = ", ".join(sorted(presets.GUIDANCE))
  parser.add_argument("--guidance", default="cfg", help=f"one of {rules} (default: cfg); scales of cfg_pp are 0 to 1")
  parser.add_argument("--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="guide at log SNR in it alone")
  parser.add_argument("--guidance-rescale", type=float, metavar="PHI", help="0 to 1: how far x0 keeps the unguided contrast")
  parser.add_argument("--negative-label", type=int, help="guide away from this class instead of from no class")
  parser.add_argument("--size", help="HxW or one side, where it is not that of the training data")
  parser.add_argument("--tile", type=int, metavar="LATENTS", help="decode in tiles: the same pictures in less memory")
  parser.add_argument("--overlap", type=int, metavar="LATENTS", help="faster, not the same: tiles by themselves, blended")
  parser.add_argument("--sigma-rel", type=float, help="length of the average of parameters, of a run with ema=Power(...)")
  parser.add_argument("--best", action="store_const", const=True, help="the denoiser that was best while training")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--batch-size", type=int, default=250, help="pictures at a time; changes memory, not pictures")
  sharding.add_arguments(parser)
  parser.add_argument("--previews", action="store_true", help="also previews.png: what eight steps took ten pictures for")
  parser.add_argument("--out", help="a folder, or a file ending in .npz (default: WORKDIR/samples)")


def main(args: argparse.Namespace) -> None:
  for name in ("n", "batch_size"):
    if getattr(args, name) < 1:
      raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}; expected at least 1")
  if not 0 <= args.seed < 2**32:
    raise UserError(f"--seed {args.seed}; expected 0 to {2**32 - 1}")
  workdir = Path(args.workdir)
  experiment = workdirs.read(workdir)
  name = args.sampler or experiment.sampling.sampler
  sampler = presets.make_sampler(name, **({} if args.eta is None else {"eta": args.eta}))
  labels = pipeline.check_labels(parse_labels(args.label, args.n, experiment.data.classes), experiment.data.classes)
  scale = args.guidance_scale if args.guidance_scale is not None else experiment.sampling.guidance_scale
  negative = -1 if args.negative_label is None else args.negative_label
  rule = presets.make_guidance(args.guidance, scale, args.guidance_interval, args.guidance_rescale)
  pipeline.check_labels(np.array([negative]), experiment.data.classes)
  out = Path(args.out) if args.out else workdir / "samples"
  pipeline.check_concat(pipeline.of(experiment), None, len(labels))
  check_writable(out)
  sharding.configure(args.devices, args)
  size, tiles = parse_size(args.size) if args.size else None, parse_tiles(args.tile, args.overlap)
  model, params = pipeline.load(workdir, args.sigma_rel, bool(args.best))
  model = dataclasses.replace(model, tiles=tiles)
  steps = args.steps if args.steps is not None else model.sampling.steps
  options = dict(
    sampler=sampler, steps=steps, grid=args.grid, guidance=rule, negative_label=negative, size=size,
    batch_size=args.batch_size, devices=sharding.asked(args))
  images = pipeline.generate(model, params, labels, args.seed, progress=progress, **options)
  rows = np.unique(np.linspace(0, args.n - 1, MOST_PREVIEWED).round().astype(int))
  looked = lambda: pipeline.trajectory(model, params, labels[rows], args.seed, previews=PREVIEWS, rows=rows, **options)
  looks = looked() if args.previews else None
  if not multihost.first():
    return
  told = {"sampler": name, "steps": steps, "guidance": args.guidance, "guidance_scale": scale, "seed": args.seed}
  told |= {name: getattr(args, name) for name in ASKED if getattr(args, name) is not None}
  if out.suffix == ".npz":
    pictures.write_npz(out, images, labels)
  else:
    pictures.write_samples(out, images, labels, told)
  if looks:
    sheet = [np.concatenate([each, image[None]]) for image, each in zip(*looks)]
    path = out.with_suffix(".previews.png") if out.suffix == ".npz" else out / "previews.png"
    pictures.write_png(path, pictures.tile_rows(sheet, max(1, round(pictures.CELL / min(images.shape[1:3])))), told)
  print(f"{len(images)} pictures in {out}")


def progress(batches):
  return tqdm(batches, desc="sample", unit="batch", disable=not multihost.first())


def parse_labels(text: str, n: int, classes: int) -> np.ndarray:
  """`--label` for n samples as int [n]: each class in turn gets n / classes, the first ones the remainder.

  Raises:
    UserError: not a comma list of whole numbers.
  """
  try:
    chosen = list(range(classes)) or [-1] if text == "all" else [int(part) for part in text.split(",")]
  except ValueError as error:
    raise UserError(f"--label {text}; expected all, a class, a comma list of classes, or -1") from error
  share, rest = divmod(n, len(chosen))
  return np.repeat(chosen, [share + (i < rest) for i in range(len(chosen))]).astype(np.int32)


def parse_tiles(tile: int | None, overlap: int | None) -> Exact | Blended | None:
  """`--tile` and `--overlap`: exact tiles, or blended ones.

  Raises:
    UserError: an overlap without tiles, or numbers that are not legal.
  """
  if tile is None:
    if overlap is not None:
      raise UserError(f"--overlap {overlap} without --tile; give the side of tiles too")
    return None
  return Exact(tile) if overlap is None else Blended(tile, overlap)


def check_writable(out: Path) -> None:
  """Before any work: can `out` be made?"""
  existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
  folder = existing.parent if existing.is_file() and out.suffix == ".npz" else existing
  try:
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise UserError(f"cannot write to --out {str(out)!r}: {error.strerror}; choose another") from error
