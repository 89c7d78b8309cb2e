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

import numpy as np

from jldm.cli import options
from jldm.cli.options import Only
from jldm.config import presets
from jldm.config.experiment import Sampling
from jldm.core.errors import UserError
from jldm.core.keys import check_seed, seed_key
from jldm.core.words import count_text
from jldm.data import transforms
from jldm.data.arrays import read_npz
from jldm.distributed import sharding
from jldm.editing.directions import coordinate_direction, unrelated_directions
from jldm.editing.edict import EDICT
from jldm.inference import canvas, edit, latent_edit
from jldm.inference.generate import Request
from jldm.inference.load import Origin, load_with_origin
from jldm.inference.model import Model, conditioner_of_kind
from jldm.media import images as pictures, sheets
from jldm.models.conditioners.degradation import Blurred, Downsampled
from jldm.models.conditioners.label import ClassLabel
from jldm.storage.class_names import read_class_names


class Task(NamedTuple):
  """The input of every kind of edit."""

  args: argparse.Namespace
  model: Model
  params: dict
  image: np.ndarray  # uint8 [N, H, W, C or C + 1]
  request: Request
  sampling: Sampling
  provenance: dict  # of the files of the edit

  @property
  def last(self) -> tuple[Request, Sampling]:
    """The last two arguments of every function of jldm.inference.edit."""
    return self.request, self.sampling


class Edited(NamedTuple):
  images: np.ndarray  # uint8 [N n, H, W, C or C + 1], n of each picture
  rows: dict[str, np.ndarray]  # the rows of the sheet, by title
  each: list[dict] | None = None  # provenance of each image alone


def read_pictures(paths: list[str], model: Model, max_pixels: int) -> np.ndarray:
  """Picture files of one size as uint8 [N, H, W, C or C + 1] with the model's channels."""
  modes = [transforms.read_picture(path, lambda image: image.mode, max_pixels, True) for path in paths]
  ends = {
    path: transforms.read_picture(path, transforms.find_levels, max_pixels)
    for path, mode in zip(paths, modes, strict=True)
    if mode == "F"
  }
  levels = transforms.common_levels(ends)  # one rule for all float pictures
  convert = lambda image: transforms.to_channels(image, canvas.image_channels(model), levels)
  images = [transforms.read_picture(path, convert, max_pixels) for path in paths]
  for path, image in zip(paths, images):
    if image.shape != images[0].shape:
      raise UserError(
        f"{path} is {describe_picture(image)} and {paths[0]} {describe_picture(images[0])}; "
        "expected pictures of one size and kind"
      )
  return np.stack(images)


def describe_picture(image: np.ndarray) -> str:
  return f"{image.shape[1]}x{image.shape[0]} pixels of {image.shape[2]} channels"


def sheet_rows(name: str, images: np.ndarray, count: int) -> dict[str, np.ndarray]:
  """The rows of a sheet that show images [count n, ...]: n edits of each of `count` pictures.

  Row i has the i-th edit of every picture.  The edits of a single picture stand in one row.
  """
  n = len(images) // count
  return {name: images} if 1 in (n, count) else {f"{name}, {i + 1}": images[i::n] for i in range(n)}


def read_mask(path: str, image: np.ndarray, max_pixels: int) -> np.ndarray:
  """A mask file for images [N, H, W, C] as known: float32 [1, H, W, 1], 0 where it is white and opaque.

  Prints the share of these pixels.
  """
  repaint = transforms.read_picture(path, transforms.to_repaint, max_pixels)
  if repaint.shape != image.shape[1:3]:
    raise UserError(
      f"--mask {path} is {repaint.shape[1]}x{repaint.shape[0]} "
      f"and --image {image.shape[2]}x{image.shape[1]} pixels; "
      "expected the same size"
    )
  if not repaint.any():
    raise UserError(f"--mask {path} is empty: nothing in it is white and opaque; paint white what to change")
  count = int(repaint.sum())
  print(
    f"mask {path}: {count} of {repaint.size} pixels ({count / repaint.size:.1%}) will be repainted",
    flush=True,
  )
  return (~repaint).astype(np.float32)[None, ..., None]


def run_image_to_image(task: Task) -> Edited:
  args, strengths = task.args, parse_numbers("--strength", task.args.strength, float)
  vary = lambda strength: edit.image_to_image(task.model, task.params, task.image, strength, *task.last)
  edits = [vary(strength) for strength in strengths]
  rows = {"source": task.image}
  for strength, images in zip(strengths, edits):
    rows |= sheet_rows(f"strength {strength:g}", images, len(task.image))
  by_picture = [edited.reshape(len(task.image), args.n, *edited.shape[1:]) for edited in edits]
  images = np.concatenate(by_picture, 1).reshape(-1, *task.image.shape[1:])
  return Edited(
    images, rows, [{"strength": strength} for strength in strengths for _ in range(args.n)] * len(task.image)
  )


def run_inpaint(task: Task) -> Edited:
  args, image = task.args, task.image
  known = (
    read_mask(args.mask, image, args.max_pixels)
    if args.mask
    else np.ones((1, *image.shape[1:3], 1), np.float32)
  )
  if args.margins:
    sides = parse_numbers("--margins", args.margins, int)
    if len(sides) not in (1, 4):
      raise UserError(
        f"--margins {args.margins}; expected one number of pixels, or four: top,right,bottom,left"
      )
    image, kept = canvas.extend_pictures(image, *(sides * 4)[:4])
    known = kept if not args.mask else np.pad(known, added_margins(kept))
  images = edit.inpaint(
    task.model, task.params, image, known, args.strength, (args.repeats, args.jump), *task.last
  )
  source = {} if args.margins else {"source": image}
  return Edited(
    images, source | {"known": blacken_unknown(image, known)} | sheet_rows("inpainted", images, len(image))
  )


def blacken_unknown(image: np.ndarray, known: np.ndarray) -> np.ndarray:
  """The image for a sheet, black in its unknown pixels."""
  return sheets.as_rgb(image) * known.astype(np.uint8)


def added_margins(known: np.ndarray) -> tuple:
  """The padding of each axis of an outpainted picture, from its `known` [1, H, W, 1]."""
  rows, columns = np.flatnonzero(known[0].any((1, 2))), np.flatnonzero(known[0].any((0, 2)))
  height, width = known.shape[1:3]
  return (0, 0), (rows[0], height - 1 - rows[-1]), (columns[0], width - 1 - columns[-1]), (0, 0)


def run_invert(task: Task) -> Edited:
  inverted = latent_edit.invert(task.model, task.params, task.image, *task.last)
  out = Path(task.args.out) / "noise.npz"
  pictures.write_arrays(out, {"noise": inverted.noise}, task.provenance)
  print(
    f"{out}: {inverted.psnr.mean():.1f} dB against the autoencoder's reconstruction, "
    f"max|z| {np.abs(inverted.noise).max():.2f}"
  )
  return Edited(
    inverted.reconstruction,
    {"source": task.image, "autoencoder": inverted.codec, "from its noise": inverted.reconstruction},
  )


def run_interpolate(task: Task) -> Edited:
  args = task.args
  both = read_pictures([*args.image, args.to], task.model, args.max_pixels)
  images = latent_edit.interpolate(
    task.model, task.params, both, args.count, args.space, args.strength, *task.last
  )
  pictures.write_gif(Path(args.out) / "interpolation.gif", images, task.provenance)
  if args.film:
    pictures.write_mp4(Path(args.out) / "interpolation.mp4", images, task.provenance)
  return Edited(
    images, {"source": both, args.space: images}, [{"share": i / (args.count - 1)} for i in range(args.count)]
  )


def run_translate(task: Task) -> Edited:
  args = task.args
  if args.onto is None:
    images = edit.paired(task.model, task.params, task.image, *task.last)
    return Edited(images, {"source": task.image} | sheet_rows("translated", images, len(task.image)))
  images = latent_edit.translate(
    task.model, task.params, task.image, label_given(task.model, args.onto), args.strength, *task.last
  )
  return Edited(images, {f"class {args.label}": task.image, f"class {args.onto}": images})


def run_restore(task: Task) -> Edited:
  args, image = task.args, task.image
  degradation = {"blur": lambda: Blurred(args.sigma), "downsample": lambda: Downsampled(args.factor)}.get(
    args.degradation
  )
  known = None
  if args.degradation is None:
    images = edit.paired(task.model, task.params, image, *task.last)
  else:
    known = read_mask(args.mask, image, args.max_pixels) if args.mask else None
    images = edit.restore(
      task.model, task.params, image, degradation and degradation(), args.noise, known, *task.last
    )
  if args.mean:
    images = edit.average_edits(images, args.n)
  factor = args.factor if args.degradation == "downsample" else 1
  rows = {"source": image.repeat(factor, 1).repeat(factor, 2)}
  if known is not None:
    rows["known"] = blacken_unknown(image, known)
  return Edited(images, rows | sheet_rows("restored", images, len(image)))


def run_directions(task: Task) -> Edited:
  args, model = task.args, task.model
  if args.examples:
    images, flags = read_examples(args, task.image)
    vectors = latent_edit.attribute(model, task.params, images, flags, args.space, args.controls, *task.last)
    name = f"{args.without} to {args.having}"
  else:
    vectors, name = channel_directions(task), f"channel {args.channel}"
  amounts = np.linspace(-args.reach, args.reach, args.count)
  moved = latent_edit.traverse(
    model, task.params, task.image, vectors, amounts, args.space, args.strength, *task.last
  )
  rows = {"source": task.image, name: moved[0]} | {f"control {i + 1}": row for i, row in enumerate(moved[1:])}
  return Edited(moved[0], rows, [{"amount": float(amount)} for amount in amounts])


def read_examples(args: argparse.Namespace, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The pictures of both classes in --examples, and a flag for each: whether it has the attribute."""
  images, labels = read_npz(args.examples, origin=f"--examples {args.examples}")
  if labels is None:
    raise UserError(
      f"--examples {args.examples}: expected an .npz with images and labels, as jldm sample writes"
    )
  images = images[..., None] if images.ndim == 3 else images
  if images.shape[1:3] != image.shape[1:3]:
    raise UserError(
      f"--examples {args.examples} are {images.shape[2]}x{images.shape[1]} pixels and --image "
      f"{image.shape[2]}x{image.shape[1]}; expected one size"
    )
  chosen = np.isin(labels, (args.having, args.without))
  return images[chosen], labels[chosen] == args.having


def channel_directions(task: Task) -> np.ndarray:
  """Directions [1 + controls, h, w, c]: one channel of the latents, at one place or all, then random ones."""
  import jax

  args, shape = task.args, canvas.open_canvas(task.model, task.image).model.latent_shape
  if args.space != "latents":
    raise UserError(
      "--channel with --space noise: it is a channel of the latents; leave --space out, or give --examples"
    )
  place = tuple(parse_numbers("--place", args.place, int)) if args.place else None
  if not 0 <= args.channel < shape[-1] or (
    place and not (len(place) == 2 and all(0 <= p < n for p, n in zip(place, shape)))
  ):
    raise UserError(
      f"--channel {args.channel} --place {args.place}; expected a channel below {shape[-1]} "
      f"and a place such as 0,0 of {shape[0]}x{shape[1]}"
    )
  direction = coordinate_direction(shape, args.channel, place)
  return np.concatenate(
    [direction[None], unrelated_directions(direction, jax.random.split(seed_key(args.seed), args.controls))]
  )


def parse_numbers(option: str, text: str, kind: type) -> list:
  try:
    return [kind(part) for part in text.split(",")]
  except ValueError as error:
    raise UserError(f"{option} {text}; expected a comma list of numbers") from error


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
    "turn a picture into another class, or apply a model that was trained on pairs",
    ("--onto", "--strength", "--n"),
    rules=(
      Only("strength", lambda args: args.onto is not None, "--onto CLASS", 1.0),
      Only("n", lambda args: args.onto is None, "a model that was trained on pairs, without --onto", 1),
    ),
    sampler=lambda args: None if args.onto is None else EDICT(),
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
  given = label_given(model, args.label)
  request = Request(n=getattr(args, "n", None) or 1, seed=args.seed, given=given)
  images = read_pictures(args.image, model, args.max_pixels)
  told = edit_provenance(args, origin, params, sampling)
  task = Task(args, model, params, images, request, sampling, told)
  check_guidance(args, model, given)
  with options.writing(out):
    edited = kind.run(task)
    each, count = edited.each or [{}] * len(edited.images), len(edited.images) // len(task.image)
    sources = [{"source_sha256": file_digest(path)} for path in args.image for _ in range(count)]
    each = [source | further for source, further in zip(sources, each, strict=True)]
    pictures.write_edits(out, edited.images, edited.rows, told, each)
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
  if told := kind.missing(args):
    raise UserError(told)
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
  further = [name for name, each in model.conditioners.items() if each.guided and name not in given]
  if args.guidance_scale not in (None, 1) and not against and not further:
    raise UserError(
      f"--guidance-scale {args.guidance_scale} without a class to guide to; give --label, or leave it out"
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


def label_given(model: Model, label: int) -> dict:
  """What a request gives for a class; UserError for a class if the model has none."""
  name = conditioner_of_kind(model, ClassLabel)
  if name is None and label != -1:
    raise UserError(f"label={label}; expected -1: this model knows no classes")
  return {} if name is None else {name: label}


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
