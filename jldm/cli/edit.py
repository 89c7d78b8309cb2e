"""`jldm edit KIND --workdir W --image A.png … --out O`: changes pictures through their latents.

O is a folder: 00000.png …, as large as the pictures, and sheet.png, which shows before and after.
Masks are white and opaque where pixels are to be painted, or are missing.
"""

import argparse
from collections.abc import Callable
import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from jldm.cli import options
from jldm.cli.edit_kinds import (
  Edited,
  Task,
  label_given,
  read_pictures,
  run_directions,
  run_image_to_image,
  run_inpaint,
  run_interpolate,
  run_invert,
  run_restore,
  run_translate,
  text_given,
)
from jldm.cli.options import Only
from jldm.config import presets
from jldm.config.experiment import Sampling
from jldm.core.errors import UserError
from jldm.core.keys import check_seed
from jldm.core.words import count_text
from jldm.distributed import sharding
from jldm.editing.edict import EDICT
from jldm.inference import edit
from jldm.inference.canvas import fit_codec
from jldm.inference.generate import Request
from jldm.inference.load import Origin, load_with_origin
from jldm.inference.model import Model
from jldm.media import images as pictures
from jldm.models.conditioners.text import TextConditioner
from jldm.storage.class_names import read_class_names


class Kind(NamedTuple):
  run: Callable[[Task], Edited]
  summary: str
  options: tuple[str, ...]
  rules: tuple[options.Only, ...] = ()
  missing: Callable[[argparse.Namespace], str | None] = lambda args: (
    None
  )  # what to say of options that are missing
  sampler: Callable[[argparse.Namespace], Any] = lambda args: None  # the kind's own; None is the experiment's
  files: tuple[str, ...] = ()  # besides the pictures and the sheet


OPTIONS: dict[str, dict[str, Any]] = {
  "--mask": dict(
    help="a picture as large as --image: white and opaque where to paint, or where pixels are missing"
  ),
  "--strength": dict(type=options.finite, help="0 keeps the picture, 1 keeps only the known pixels"),
  "--strength LIST": dict(
    default="0.5", metavar="S", help="0 keeps the picture, 1 ignores it; or a list such as 0.3,0.6"
  ),
  "--n": dict(type=int, help="number of edits of each picture (default: 1)"),
  "--margins": dict(
    metavar="N", help="pixels to paint around the picture: one number, or top,right,bottom,left"
  ),
  "--repeats": dict(
    type=int, default=1, help="how often each group of steps is repeated, as in RePaint (default: 1)"
  ),
  "--jump": dict(
    type=int, help="number of steps in such a group (default: 10, or all but one if they are fewer)"
  ),
  "--to": dict(required=True, metavar="B.png", help="the picture to end at"),
  "--count": dict(type=int, default=9, help="number of pictures, both ends included (default: 9)"),
  "--space": dict(choices=("noise", "latents"), help="the space in which to move"),
  "--film": dict(action="store_true", help="also write interpolation.mp4; needs pip install 'jldm[video]'"),
  "--onto": dict(metavar="CLASS", help="the target class; leave it out if the model was trained on pairs"),
  "--onto-prompt": dict(metavar="TEXT", help="the text to turn it into, of a model that reads captions"),
  "--degradation": dict(
    choices=("noise", "blur", "downsample", "missing"),
    help="what was done to the picture; leave it out if the model was trained on pairs",
  ),
  "--noise": dict(
    type=options.finite, help="standard deviation of the picture's noise, for pixels in [-1, 1] (default: 0)"
  ),
  "--sigma": dict(
    type=options.finite, help="for blur: standard deviation of the Gaussian in pixels (default: 2)"
  ),
  "--factor": dict(type=int, help="for downsample: how many times larger the result is (default: 4)"),
  "--mean": dict(action="store_true", help="write only the mean of the n results"),
  "--channel": dict(type=int, help="the channel of the latents to move along"),
  "--place": dict(metavar="ROW,COLUMN", help="the place in the channel (default: all of it)"),
  "--examples": dict(
    metavar="S.npz", help="images and labels, as jldm sample writes them, to learn a direction from"
  ),
  "--having": dict(metavar="CLASS", help="the examples with the attribute"),
  "--without": dict(metavar="CLASS", help="the examples without it"),
  "--reach": dict(
    type=options.finite,
    default=2.0,
    help="how far to move either way, in lengths of the direction (default: 2)",
  ),
  "--controls": dict(
    type=int, default=2, help="number of random directions of the same length to compare with (default: 2)"
  ),
}
LABELS = {"label": "--label", "onto": "--onto", "having": "--having", "without": "--without"}
DEFAULTS: dict[str, dict[str, Any]] = {  # kind -> its defaults, by the name of the option
  "inpaint": {"strength": 1.0},
  "interpolate": {"strength": 0.0, "space": "noise"},
  "directions": {"strength": 0.0, "space": "latents"},
}


def missing_of_inpaint(args: argparse.Namespace) -> str | None:
  if not (args.mask or args.margins):
    return "inpaint without --mask or --margins; give one to say what to paint"
  return None


def missing_of_restore(args: argparse.Namespace) -> str | None:
  if args.degradation == "missing" and not args.mask:
    return "--degradation missing without --mask; --mask says which pixels are missing"
  if args.degradation == "noise" and not args.noise:
    return "--degradation noise without --noise; give its standard deviation, for pixels in [-1, 1]"
  return None


def missing_of_directions(args: argparse.Namespace) -> str | None:
  if (args.channel is None) == (args.examples is None):
    return "directions with both or none of --channel and --examples; give one of them"
  if args.examples and (args.having is None or args.without is None):
    return "--examples without --having CLASS and --without CLASS; expected both"
  return None


def edict_in_noise(args: argparse.Namespace) -> Any:
  return EDICT() if args.space == "noise" else None


def has_target(args: argparse.Namespace) -> bool:
  return args.onto is not None or args.onto_prompt is not None


KINDS = {
  "image-to-image": Kind(run_image_to_image, "variations of a picture", ("--strength LIST", "--n")),
  "inpaint": Kind(
    run_inpaint,
    "paint masked pixels anew, or paint around the picture",
    ("--mask", "--margins", "--strength", "--n", "--repeats", "--jump"),
    rules=(Only("jump", lambda args: args.repeats > 1, "--repeats of at least 2"),),
    missing=missing_of_inpaint,
  ),
  "invert": Kind(
    run_invert, "the noise that leads to a picture", (), sampler=lambda args: EDICT(), files=("noise.npz",)
  ),
  "interpolate": Kind(
    run_interpolate,
    "from one picture to another",
    ("--to", "--count", "--space", "--strength", "--film"),
    sampler=edict_in_noise,
    files=("interpolation.gif", "interpolation.mp4"),
  ),
  "translate": Kind(
    run_translate,
    "turn a picture into another class or text, or apply a model that was trained on pairs",
    ("--onto", "--onto-prompt", "--strength", "--n"),
    rules=(
      Only("strength", has_target, "--onto CLASS or --onto-prompt TEXT", 1.0),
      Only("n", lambda args: not has_target(args), "a model that was trained on pairs, without --onto", 1),
    ),
    sampler=lambda args: EDICT() if has_target(args) else None,
  ),
  "restore": Kind(
    run_restore,
    "undo noise, blur, low resolution or missing pixels",
    ("--degradation", "--noise", "--sigma", "--factor", "--mask", "--mean", "--n"),
    rules=(
      Only("noise", lambda args: args.degradation, "--degradation", 0.0),
      Only("sigma", lambda args: args.degradation == "blur", "--degradation blur", 2.0),
      Only("factor", lambda args: args.degradation == "downsample", "--degradation downsample", 4),
      Only("mask", lambda args: args.degradation == "missing", "--degradation missing"),
    ),
    missing=missing_of_restore,
    sampler=lambda args: edit.RESTORING if args.degradation else None,
  ),
  "directions": Kind(
    run_directions,
    "move along a channel of the latents, or an attribute learned from examples",
    (
      "--channel",
      "--place",
      "--examples",
      "--having",
      "--without",
      "--reach",
      "--count",
      "--controls",
      "--space",
      "--strength",
    ),
    rules=(
      Only("place", lambda args: args.channel is not None, "--channel"),
      Only("having", lambda args: args.examples, "--examples"),
      Only("without", lambda args: args.examples, "--examples"),
    ),
    missing=missing_of_directions,
    sampler=edict_in_noise,
  ),
}
INPUTS = ("mask", "to", "examples")  # options that name files to read, besides --image


def add_arguments(parser: argparse.ArgumentParser) -> None:
  kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
  for name, kind in KINDS.items():
    command = kinds.add_parser(name, help=kind.summary, description=kind.summary)
    options.add_shared(command, "--workdir", "--best")
    command.add_argument(
      "--image", required=True, nargs="+", metavar="A.png", help="pictures of any format, all of one size"
    )
    for option in kind.options:
      command.add_argument(option.split()[0], **OPTIONS[option])
    command.add_argument(
      "--label", default="-1", help="the picture's class by name or number (default: -1, unknown)"
    )
    command.add_argument(
      "--prompt", metavar="TEXT", help="what the picture shows or will show, of a model that reads captions"
    )
    command.add_argument(
      "--negative", metavar="TEXT", help="guide away from this text, not from the empty one"
    )
    options.add_shared(
      command,
      "--sampler",
      help=f"edict, one of {', '.join(sorted(presets.SAMPLERS))}, or one written out "
      "(default: the experiment's, and edict if the edit inverts a picture)",
    )
    options.add_shared(command, "--steps", "--grid", "--eta", "--guidance-scale", "--seed", "--max-pixels")
    command.add_argument("--out", required=True, metavar="O", help="a folder")
    options.add_shared(command, "--overwrite")
    command.set_defaults(**DEFAULTS.get(name, {}))


def main(args: argparse.Namespace) -> None:
  kind = KINDS[args.kind]
  out, left = check_args(args, kind)
  sharding.configure(1)
  origin, model, params = load_with_origin(args.workdir, best=bool(args.best))
  sampling = edit_sampling(args, model.sampling)
  given = label_given(model, args.label) | text_given(model, "--prompt", args.prompt)
  against = text_given(model, "--negative", args.negative)
  request = Request(n=getattr(args, "n", None) or 1, seed=args.seed, given=given, against=(against,))
  images = read_pictures(args.image, model, args.max_pixels)
  model, line = fit_codec(model, params, images, request.n)
  if line:
    print(line)
  provenance = edit_provenance(args, origin, params, sampling)
  task = Task(args, model, params, images, request, sampling, provenance)
  check_guidance(args, model, given)
  with options.writing(out):
    edited = kind.run(task)
    each, count = edited.each or [{}] * len(edited.images), len(edited.images) // len(task.image)
    sources = [{"source_sha256": file_digest(path)} for path in args.image for _ in range(count)]
    each = [source | further for source, further in zip(sources, each, strict=True)]
    pictures.write_edits(out, edited.images, edited.rows, provenance, each)
    for path in left:
      path.unlink(missing_ok=True)
  print(f"{count_text(len(edited.images), 'picture')} in {out}")


def check_args(args: argparse.Namespace, kind: Kind) -> tuple[Path, list[Path]]:
  """Refuses what needs no model to be refused, and gives options that depend on others their defaults.

  Returns the folder, and what an earlier edit left there.

  Raises:
    UserError: numbers that are not legal, options that would reach nothing or are missing, or a place
      that cannot be written to.
  """
  counts = ("n", "count", "repeats", "jump", "factor")
  values = {name: getattr(args, name, None) for name in counts}
  options.check_at_least(1, **{name: value for name, value in values.items() if value is not None})
  options.check_at_least(1, max_pixels=args.max_pixels)
  options.check_at_least(0, controls=getattr(args, "controls", 0))
  check_seed(args.seed, "--seed")
  resolve_labels(args, read_class_names(Path(args.workdir)))
  options.settle(args, kind.rules)
  if message := kind.missing(args):
    raise UserError(message)
  if "n" in args and args.n is None and "n" not in [rule.option for rule in kind.rules]:
    args.n = 1
  if getattr(args, "film", False):
    pictures.import_imageio()
  out = Path(args.out)
  if out.suffix == ".npz" or out.is_file():
    raise UserError(f"--out {args.out}; expected a folder")
  options.check_writable(out)
  return out, claim_names(out, args, pictures_made(args))


def pictures_made(args: argparse.Namespace) -> int:
  """How many pictures an edit writes."""
  if args.kind in ("interpolate", "directions"):
    return args.count
  strengths = str(args.strength).count(",") + 1 if args.kind == "image-to-image" else 1
  each = 1 if getattr(args, "mean", False) else getattr(args, "n", None) or 1
  return len(args.image) * strengths * each


def claim_names(out: Path, args: argparse.Namespace, count: int) -> list[Path]:
  """As `pictures.claim_names`, of an edit of `count` pictures."""
  inputs = [args.image, *([getattr(args, name, None)] for name in INPUTS)]
  inputs = [Path(path) for paths in inputs for path in paths if path]
  films = {"interpolation.mp4"} if not getattr(args, "film", False) else set()
  names = ["sheet.png", *(name for name in KINDS[args.kind].files if name not in films)]
  return pictures.claim_names(out, count, names, f"edit {args.kind}", args.overwrite, inputs)


def check_guidance(args: argparse.Namespace, model: Model, given: dict) -> None:
  """Raises a UserError for a guidance scale where there is nothing to guide to."""
  onto = getattr(args, "onto", None)
  against = any(value not in (None, -1) for value in (args.label, onto))
  against |= any(
    text is not None for text in (args.prompt, args.negative, getattr(args, "onto_prompt", None))
  )
  texts = [name for name, each in model.conditioners.items() if isinstance(each, TextConditioner)]
  further = [
    name for name, each in model.conditioners.items() if each.guided and name not in (*given, *texts)
  ]
  if args.guidance_scale not in (None, 1) and not against and not further:
    raise UserError(
      f"--guidance-scale {args.guidance_scale} without a class to guide to, or a text; give --label or "
      "--prompt, or leave it out"
    )


def resolve_labels(args: argparse.Namespace, names: list[str]) -> None:
  """Replaces the classes in `args`, by name or number, by labels."""
  for name in LABELS.keys() & vars(args).keys():
    text = getattr(args, name)
    if text is not None:
      setattr(args, name, options.parse_label(LABELS[name], text, names))


def edit_sampling(args: argparse.Namespace, default: Sampling) -> Sampling:
  """The experiment's sampling, changed by the options; its sampler is the edit's own unless one is named."""
  guidance = None if args.guidance_scale is None else presets.make_guidance(scale=args.guidance_scale)
  sampler = EDICT() if args.sampler == "edict" else KINDS[args.kind].sampler(args) or default.sampler
  base = dataclasses.replace(default, sampler=sampler)
  named = None if args.sampler == "edict" else args.sampler
  return presets.override_sampling(base, named, args.steps, args.grid, args.eta, guidance)


def edit_provenance(args: argparse.Namespace, origin: Origin, params: dict, sampling: Sampling) -> dict:
  """The kind of edit, the model, the sampling, the hashes of the files that it read, and its options."""
  hashes, given = {}, {name: value for name, value in vars(args).items() if value is not None}
  for option in INPUTS:
    if path := given.pop(option, None):
      hashes[f"{option}_sha256"] = file_digest(path)
  hashes["source_sha256"] = [file_digest(path) for path in given.pop("image")]
  for option in ("workdir", "out", "command", "kind", "overwrite", "imports", "max_pixels"):
    given.pop(option, None)
  described = presets.sampling_to_dict(sampling)
  described |= options.model_provenance(Path(args.workdir), origin, params, sampling)
  return {"command": f"edit {args.kind}", "edit": args.kind, **described, **hashes, **given}


def file_digest(path: str) -> str:
  """The sha256 of a file; UserError if there is none."""
  if not Path(path).is_file():
    raise UserError(f"{path} is no file that can be read; expected a picture, or an .npz")
  return hashlib.sha256(Path(path).read_bytes()).hexdigest()
