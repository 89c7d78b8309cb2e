"""`jldm sample`: pictures from a workdir, as PNGs or one .npz."""

import argparse
import dataclasses
from pathlib import Path
import tempfile
from typing import Any

import numpy as np
from tqdm import tqdm

from jldm.cli.prepare import parse_size
from jldm.config import presets
from jldm.config.experiment import Experiment
from jldm.config.presets import make_guidance, override_sampling, sampling_to_dict
from jldm.core.errors import UserError
from jldm.distributed import multihost, sharding
from jldm.inference.conditions import make_branches
from jldm.inference.generate import Request, generate
from jldm.inference.load import Model, build_model, classes_of, conditioner_of_kind, load
from jldm.media import images as pictures
from jldm.media.parts import write_parts
from jldm.models.codecs.tiled import Tiled
from jldm.models.codecs.tiling import Blended, Exact
from jldm.models.conditioners.label import ClassLabel
from jldm.samplers.grid import GRIDS
from jldm.storage import workdir as workdirs

PREVIEWS, MOST_PREVIEWED = 8, 10  # steps and pictures on previews.png
RECORDED = (  # options that stand in the provenance where they are given
  "sampler",
  "eta",
  "guidance",
  "guidance_interval",
  "guidance_rescale",
  "negative_label",
  "size",
  "sigma_rel",
  "tile",
  "overlap",
  "best",
  "stage",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument("--workdir", required=True, help="a folder that train.py made; nothing else is needed")
  parser.add_argument("--n", type=int, default=64, help="how many pictures (default: 64)")
  parser.add_argument(
    "--label", default="all", help="all (default), a class, a comma list such as 3,5, or -1: unconditional"
  )
  parser.add_argument(
    "--sampler",
    help=f"one of {', '.join(sorted(presets.SAMPLERS))}, or one written out, such as "
    '"Churn(Heun(), gamma=0.1)" (default: the experiment\'s)',
  )
  parser.add_argument("--steps", type=int, help="steps of the sampler (default: the experiment's)")
  parser.add_argument("--grid", help=f"where the steps stand: {', '.join(GRIDS)} (default: the experiment's)")
  parser.add_argument(
    "--eta", type=float, help="noise of ddim or dpmpp: 0 is deterministic, 1 ancestral or SDE"
  )
  parser.add_argument("--guidance-scale", type=float, help="1 is none (default: the experiment's)")
  rules = ", ".join(sorted(presets.GUIDANCE))
  parser.add_argument("--guidance", help=f"one of {rules} (default: cfg); scales of cfg_pp are 0 to 1")
  parser.add_argument(
    "--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="guide at log SNR in it alone"
  )
  parser.add_argument(
    "--guidance-rescale", type=float, metavar="PHI", help="0 to 1: how far x0 keeps the unguided contrast"
  )
  parser.add_argument(
    "--negative-label", type=int, help="guide away from this class instead of from no class"
  )
  parser.add_argument("--size", help="HxW or one side, where it is not that of the training data")
  parser.add_argument(
    "--tile", type=int, metavar="LATENTS", help="decode in tiles: the same pictures in less memory"
  )
  parser.add_argument(
    "--overlap", type=int, metavar="LATENTS", help="faster, not the same: tiles by themselves, blended"
  )
  parser.add_argument(
    "--sigma-rel", type=float, help="length of the average of parameters, of a run with ema=Power(...)"
  )
  parser.add_argument(
    "--best", action="store_const", const=True, help="the denoiser that was best while training"
  )
  parser.add_argument("--stage", metavar="NAME", help="the stage that draws (default: the last that can)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--batch-size", type=int, default=250, help="pictures at a time; changes memory, not pictures"
  )
  sharding.add_arguments(parser)
  parser.add_argument(
    "--previews", action="store_true", help="also previews.png: what eight steps took ten pictures for"
  )
  parser.add_argument("--out", help="a folder, or a file ending in .npz (default: WORKDIR/samples)")


def main(args: argparse.Namespace) -> None:
  for name in ("n", "batch_size"):
    if getattr(args, name) < 1:
      raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}; expected at least 1")
  if not 0 <= args.seed < 2**32:
    raise UserError(f"--seed {args.seed}; expected 0 to {2**32 - 1}")
  workdir = Path(args.workdir)
  experiment = workdirs.read_experiment(workdir)
  sampling = override_sampling(
    experiment.sampling, args.sampler, args.steps, args.grid, args.eta, guidance_from_args(args, experiment)
  )
  described_model = build_model(experiment, args.stage)
  labels = parse_labels(args.label, args.n, classes_of(described_model))
  out = Path(args.out) if args.out else workdir / "samples"
  request = request_from_args(described_model, args, labels)
  if described_model.parts and (args.previews or args.tile):
    raise UserError(
      f"--previews and --tile with samples in parts ({', '.join(described_model.parts)}); leave them out"
    )
  check_writable(out)
  sharding.configure(args.devices, args)
  tiles = parse_tiles(args.tile, args.overlap)
  model, params = load(workdir, args.sigma_rel, bool(args.best), args.stage)
  model = model if tiles is None else dataclasses.replace(model, codec=Tiled(model.codec, tiles))
  options = dict(batch_size=args.batch_size, devices=sharding.layout_from_args(args))
  samples = generate(model, params, request, sampling, progress=progress_bar, **options).data
  rows = np.unique(np.linspace(0, args.n - 1, MOST_PREVIEWED).round().astype(int))
  looks = generate(model, params, select_rows(request, rows), sampling, **options) if args.previews else None
  if not multihost.is_primary():
    return
  told = sampling_to_dict(sampling) | {"seed": args.seed}
  told |= {"guidance_scale": guidance_scale(args, experiment)} if args.guidance else {}
  told |= {name: getattr(args, name) for name in RECORDED if getattr(args, name) is not None}
  write_samples(out, samples, labels, told)
  if looks:
    sheet = [np.concatenate([each, image[None]]) for image, each in zip(looks.data, looks.estimates)]
    path = out.with_suffix(".previews.png") if out.suffix == ".npz" else out / "previews.png"
    pictures.write_png(
      path, pictures.tile_rows(sheet, max(1, round(pictures.CELL / min(samples.shape[1:3])))), told
    )
  print(f"{args.n} {', '.join(model.parts) or 'pictures'} in {out}")


def write_samples(out: Path, samples: Any, labels: np.ndarray, provenance: dict) -> None:
  """Writes pictures uint8 [N, H, W, C], or a dict of parts, to a folder or a file ending in .npz."""
  if isinstance(samples, dict):
    write_parts(out, samples, labels, provenance)
  elif out.suffix == ".npz":
    pictures.write_npz(out, samples, labels)
  else:
    pictures.write_samples(out, samples, labels, provenance)


def guidance_from_args(args: argparse.Namespace, experiment: Experiment) -> Any:
  """The rule of guidance that the options name; None for the experiment's own."""
  if (
    args.guidance is None
    and args.guidance_scale is None
    and not (args.guidance_interval or args.guidance_rescale is not None)
  ):
    return None
  return make_guidance(
    args.guidance or "cfg", guidance_scale(args, experiment), args.guidance_interval, args.guidance_rescale
  )


def guidance_scale(args: argparse.Namespace, experiment: Experiment) -> float:
  """The scale of a rule of guidance that the options name."""
  own = sampling_to_dict(experiment.sampling).get("guidance_scale", 1.0)
  return own if args.guidance_scale is None else args.guidance_scale


def request_from_args(model: Model, args: argparse.Namespace, labels: np.ndarray) -> Request:
  """What the options ask to draw; UserError for conditions that the model does not know, or cannot do without."""
  name, negative = conditioner_of_kind(model, ClassLabel), args.negative_label
  if name is None and ((labels != -1).any() or negative is not None):
    raise UserError(
      f"label={args.label}, negative_label={negative}; expected -1 (unconditional): this model knows no classes"
    )
  given = {} if name is None else {name: labels}
  against = ({},) if negative is None else ({name: negative},)
  make_branches(model, given, against, len(labels))
  size = parse_size(args.size) if args.size else None
  return Request(n=args.n, seed=args.seed, given=given, against=against, size=size)


def select_rows(request: Request, rows: np.ndarray) -> Request:
  """Some of its samples, with the estimates that previews show."""
  given = {name: value[rows] for name, value in request.given.items()}
  return dataclasses.replace(request, n=len(rows), given=given, rows=rows, estimates=PREVIEWS)


def progress_bar(batches):
  return tqdm(batches, desc="sample", unit="batch", disable=not multihost.is_primary())


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
