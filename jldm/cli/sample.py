"""`jldm sample`: pictures from a workdir, as PNGs or one .npz."""

import argparse
from collections.abc import Sequence
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from jldm.cli import options
from jldm.cli.prepare import parse_size
from jldm.config import presets
from jldm.config.experiment import Experiment
from jldm.config.presets import make_guidance, override_sampling, sampling_to_dict
from jldm.core.errors import UserError
from jldm.core.keys import check_seed
from jldm.core.words import count_text
from jldm.distributed import multihost, sharding
from jldm.inference.conditions import make_branches
from jldm.inference.generate import Request, Samples, check_finite, check_number, generate, generate_batches
from jldm.inference.load import load_with_origin
from jldm.inference.model import Model, build_model, classes_of, conditioner_of_kind
from jldm.media import images as pictures, sheets
from jldm.media.draws import ArrayFile, Captions, DrawFiles, PartFolder, PictureFolder
from jldm.media.open import open_regular
from jldm.models.codecs.tiled import Tiled
from jldm.models.codecs.tiling import Blended, Exact
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.text import TextConditioner
from jldm.samplers.guidance import APG, ClassifierFree, FirstChannels, Interval, Rescale
from jldm.storage import workdir as workdirs
from jldm.storage.class_names import read_class_names

PREVIEW_STEPS, PREVIEW_COUNT = 8, 10  # of previews.png: its columns and rows
MOST_PROMPT_BYTES = 2**24  # of a file of prompts
GOES_ON = "make room, and the same command goes on, or choose another"
RECORDED_OPTIONS = (  # written to the provenance of each picture if they are given
  "sampler",
  "eta",
  "guidance",
  "guidance_interval",
  "guidance_rescale",
  "guidance_channels",
  "negative_label",
  "negative",
  "size",
  "sigma_rel",
  "tile",
  "overlap",
  "best",
  "stage",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_shared(parser, "--workdir", "--stage", "--best")
  parser.add_argument("--n", type=int, default=64, help="number of pictures (default: 64)")
  parser.add_argument(
    "--label",
    default="all",
    help="all (default), a class by name or number, a list such as 3,5 or cat,dog, or -1: unconditional",
  )
  options.add_shared(parser, "--sampler", "--steps", "--grid", "--eta", "--guidance-scale")
  rules = ", ".join(sorted(presets.GUIDANCE))
  parser.add_argument("--guidance", help=f"one of {rules} (default: cfg); scales of cfg_pp are 0 to 1")
  parser.add_argument(
    "--guidance-interval",
    type=options.finite,
    nargs=2,
    metavar=("LOW", "HIGH"),
    help="use guidance only at log SNR from LOW to HIGH",
  )
  parser.add_argument(
    "--guidance-rescale",
    type=options.finite,
    metavar="PHI",
    help="0 to 1: how far the contrast of x0 is brought back to what it is without guidance",
  )
  parser.add_argument(
    "--guidance-channels",
    type=int,
    metavar="N",
    help="guide the first N channels of the latents, 0 for all (default: the experiment's)",
  )
  parser.add_argument("--negative-label", help="guide away from this class, not from no class")
  parser.add_argument(
    "--prompt",
    metavar="TEXT",
    help="what to draw, of a model that reads captions: a text, several as 'A|B', or a .txt file of lines",
  )
  parser.add_argument("--negative", metavar="TEXT", help="guide away from this text, not from the empty one")
  parser.add_argument("--size", help="HxW, or one number for both (default: the size of the training data)")
  parser.add_argument(
    "--tile", type=int, metavar="LATENTS", help="decode in tiles of this side: the same pictures, less memory"
  )
  parser.add_argument(
    "--overlap", type=int, metavar="LATENTS", help="blend tiles over this overlap: faster, but not the same"
  )
  parser.add_argument(
    "--sigma-rel",
    type=options.finite,
    help="width of the average of parameters, in a run with ema=Power(...)",
  )
  options.add_shared(parser, "--seed", "--batch-size")
  sharding.add_arguments(parser)
  parser.add_argument(
    "--previews",
    action="store_true",
    help=f"also write previews.png: estimates of x0 of {PREVIEW_COUNT} pictures at {PREVIEW_STEPS} steps",
  )
  parser.add_argument("--out", help="a folder, or a file ending in .npz (default: WORKDIR/samples)")
  options.add_shared(parser, "--overwrite")


def main(args: argparse.Namespace) -> None:
  options.check_at_least(1, n=args.n, batch_size=args.batch_size)
  check_number(args.n)
  check_seed(args.seed, "--seed")
  # 1. Everything that can be refused is refused before any work.
  workdir = Path(args.workdir)
  experiment = workdirs.read_experiment(workdir)
  sampling = override_sampling(
    experiment.sampling, args.sampler, args.steps, args.grid, args.eta, guidance_from_args(args, experiment)
  )
  model_shape = build_model(experiment, args.stage)
  names = read_class_names(workdir)
  labels = parse_labels(args.label, args.n, classes_of(model_shape), names)
  if args.negative_label is not None:
    args.negative_label = options.parse_label("--negative-label", args.negative_label, names)
  prompts = parse_prompts(args.prompt, args.n)
  request = request_from_args(model_shape, args, labels, prompts)
  tiles = parse_tiles(args.tile, args.overlap)
  if model_shape.parts and (args.previews or args.tile):
    raise UserError(
      f"--previews and --tile with samples in parts ({', '.join(model_shape.parts)}); leave them out"
    )
  refuse_idle_guidance(args, sampling.guidance, bool((labels != -1).any() or prompts))
  out = Path(args.out) if args.out else workdir / "samples"
  options.check_writable(out)
  earlier = claim_names(out, model_shape, args)

  # 2. The samples.
  sharding.configure(args.devices, args)
  origin, model, params = load_with_origin(workdir, args.sigma_rel, bool(args.best), args.stage)
  model = model if tiles is None else dataclasses.replace(model, codec=Tiled(model.codec, tiles))
  batching = dict(batch_size=args.batch_size, devices=sharding.layout_from_args(args))
  provenance = {"command": "sample"} | sampling_to_dict(sampling) | {"seed": args.seed}
  provenance |= options.model_provenance(workdir, origin, params, sampling)
  provenance |= {"guidance_scale": guidance_scale(args, experiment)} if args.guidance else {}
  provenance |= {name: getattr(args, name) for name in RECORDED_OPTIONS if getattr(args, name) is not None}
  files = open_files(out, model.parts, Captions(labels, names, prompts), provenance)
  batches, drawn = generate_batches(
    *(model, params, request, sampling),
    **batching,
    progress=options.progress_bar,
    is_there=lambda rows: multihost.broadcast(multihost.is_primary() and files.has(rows)),
  )
  kept = args.n
  with contextlib.closing(drawn):  # else the progress bar is printed once more after an error
    for rows, batch in drawn:
      check_finite(batch.finite)
      kept -= len(rows)
      if multihost.is_primary():
        with options.writing(out, remedy=GOES_ON):
          files.write(rows, batch.data)
  rows = np.unique(np.linspace(0, args.n - 1, PREVIEW_COUNT).round().astype(int))
  previews = (
    generate(model, params, select_rows(request, rows), sampling, **batching) if args.previews else None
  )

  # 3. What comes last: the grid, or the .npz of all batches.
  if not multihost.is_primary():
    return
  with options.writing(out, remedy=GOES_ON):
    if previews:
      write_previews(out, previews, sheets.row_titles(labels[rows], names), provenance)
    for path in earlier:
      path.unlink(missing_ok=True)
    files.finish(batches)
  what = f"{args.n} {', '.join(model.parts)}" if model.parts else count_text(args.n, "picture")
  print(f"{what} in {out}{f', of which {kept} were drawn before' if kept else ''}")


def claim_names(out: Path, model: Model, args: argparse.Namespace) -> list[Path]:
  """As `pictures.claim_names`, of a draw into a folder, of each of its parts, or into an .npz."""
  previews = preview_path(out)
  if out.suffix == ".npz":
    pictures.check_replaceable([out, previews] if args.previews else [out], "sample", args.overwrite)
    stale = not args.previews and pictures.is_made_by(previews, "sample", args.overwrite)
    return [previews] if stale else []
  if model.parts:
    pictures.check_replaceable([out / "parts.npz"], "sample", args.overwrite)
  names = ("grid.png", previews.name) if args.previews else ("grid.png",)
  folders = [out / name for name in model.parts] or [out]
  return [
    path
    for folder in folders
    for path in pictures.claim_names(folder, args.n, names, "sample", args.overwrite)
  ]


def preview_path(out: Path) -> Path:
  return out.with_suffix(".previews.png") if out.suffix == ".npz" else out / "previews.png"


def refuse_idle_guidance(args: argparse.Namespace, rule: Any, guided: bool) -> None:
  """Raises a UserError for options of guidance that would change nothing."""
  names = (
    "guidance",
    "guidance_scale",
    "guidance_interval",
    "guidance_rescale",
    "guidance_channels",
    "negative_label",
    "negative",
  )
  given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
  pushed = args.negative_label is not None or args.negative is not None
  if given and not guided and not pushed and args.guidance_scale != 1:
    text = options.option_text(*next(iter(given.items())))
    raise UserError(
      f"{text} without a class to guide to, or a text; give a --label or a --prompt, or leave it out"
    )
  rule = inner_rule(rule)
  further = {name: value for name, value in given.items() if name in names[2:]}
  if further and isinstance(rule, (ClassifierFree, APG)) and np.all(rule.guidance_scale == 1):
    text = options.option_text(*next(iter(further.items())))
    raise UserError(f"{text} with a guidance scale of 1, which is none; give a --guidance-scale other than 1")


def write_previews(out: Path, previews: Samples, titles: list[str], provenance: dict) -> None:
  """Writes previews.png: a row per sample, its title, its estimates of x0 and then the sample itself."""
  rows = [np.concatenate([each, image[None]]) for image, each in zip(previews.data, previews.estimates)]
  path = preview_path(out)
  pictures.write_png(path, sheets.titled_rows(rows, titles), provenance)


def open_files(out: Path, parts: Sequence[str], captions: Captions, provenance: dict) -> DrawFiles:
  """What is written of a draw: a file ending in .npz, or a folder of pictures, or of parts."""
  if out.suffix == ".npz":
    return ArrayFile(out, captions, provenance)
  if parts:
    return PartFolder(out, parts, captions, provenance)
  return PictureFolder(out, captions, provenance)


def guidance_from_args(args: argparse.Namespace, experiment: Experiment) -> Any:
  """The guidance that the options choose; None if they choose none, so that the experiment's stays."""
  further = (args.guidance_interval, args.guidance_rescale, args.guidance_channels)
  if all(option is None for option in (args.guidance, args.guidance_scale, *further)):
    return None
  rule, channels = experiment.sampling.guidance, args.guidance_channels
  if channels is None and isinstance(rule, FirstChannels):
    channels = rule.channels
  return make_guidance(args.guidance or "cfg", guidance_scale(args, experiment), *further[:2], channels)


def inner_rule(rule: Any) -> Any:
  """The rule that others wrap."""
  while isinstance(rule, (FirstChannels, Interval, Rescale)):
    rule = rule.rule
  return rule


def guidance_scale(args: argparse.Namespace, experiment: Experiment) -> float:
  """--guidance-scale, by default the experiment's, or 1 if its guidance has no scale."""
  if args.guidance_scale is not None:
    return args.guidance_scale
  rule = inner_rule(experiment.sampling.guidance)
  return rule.guidance_scale if isinstance(rule, ClassifierFree) else 1.0


def request_from_args(
  model: Model, args: argparse.Namespace, labels: np.ndarray, prompts: Sequence[str]
) -> Request:
  """The request that the options describe.

  Raises:
    UserError: conditions that the model does not have, or lacks and needs.
  """
  label, negative = conditioner_of_kind(model, ClassLabel), args.negative_label
  text = conditioner_of_kind(model, TextConditioner)
  if label is None and ((labels != -1).any() or negative is not None):
    raise UserError(
      f"label={args.label}, negative_label={negative}; expected -1 (unconditional): "
      "this model knows no classes"
    )
  if text is None and (prompts or args.negative is not None):
    raise UserError(
      f"prompt={args.prompt!r}, negative={args.negative!r}; expected neither: this model reads no captions"
    )
  given = ({} if label is None else {label: labels}) | ({text: prompts} if prompts else {})
  pushed = {} if negative is None else {label: negative}
  pushed |= {} if args.negative is None else {text: args.negative}
  make_branches(model, given, (pushed,), len(labels))
  size = parse_size(args.size) if args.size else None
  return Request(n=args.n, seed=args.seed, given=given, against=(pushed,), size=size)


def select_rows(request: Request, rows: np.ndarray) -> Request:
  """The request for some of its samples, with the estimates that previews show."""
  given = {name: np.asarray(value)[rows] for name, value in request.given.items()}
  return dataclasses.replace(request, n=len(rows), given=given, rows=rows, estimates=PREVIEW_STEPS)


def parse_labels(text: str, n: int, classes: int, names: Sequence[str] = ()) -> np.ndarray:
  """The labels int [n] that `--label` chooses: n / classes of each class, one more of the first ones.

  Raises:
    UserError: not a comma list of names or whole numbers.
  """
  if text == "all":
    chosen = list(range(classes)) or [-1]
  else:
    parts = [text] if text in names else text.split(",")
    chosen = [options.parse_label("--label", part, names) for part in parts]
  return np.asarray(spread(chosen, n))


def spread(chosen: Sequence[Any], n: int) -> list[Any]:
  """n / len(chosen) of each, one more of the first ones."""
  each, rest = divmod(n, len(chosen))
  return [value for i, value in enumerate(chosen) for _ in range(each + (i < rest))]


def parse_prompts(text: str | None, n: int) -> list[str]:
  """The prompts, n or none, that `--prompt` chooses: n / count of each, one more of the first ones.

  Raises:
    UserError: a file that is not there, or no text.
  """
  if text is None:
    return []
  if not text.endswith(".txt"):
    return spread(text.split("|"), n)
  try:
    with open_regular(text) as file:
      lines = file.read(MOST_PROMPT_BYTES).decode().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    reason = getattr(error, "strerror", None) or "no UTF-8 text"
    raise UserError(
      f"--prompt {text!r}: {reason}; expected a file of UTF-8 text with a prompt per line"
    ) from error
  if not lines:
    raise UserError(f"--prompt {text!r} is empty; expected a prompt per line")
  return spread(lines, n)


def parse_tiles(tile: int | None, overlap: int | None) -> Exact | Blended | None:
  """The tiles that `--tile` and `--overlap` choose: exact, or blended if they overlap; None for none.

  Raises:
    UserError: an overlap without tiles, or numbers that are not legal.
  """
  if tile is None:
    if overlap is not None:
      raise UserError(f"--overlap {overlap} without --tile; give the side of tiles too")
    return None
  return Exact(tile) if overlap is None else Blended(tile, overlap)
