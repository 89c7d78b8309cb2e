"""`jldm edit KIND --workdir W --image A.png … --out O`: pictures changed through their latents.

O is a folder: 00000.png …, as large as the pictures, and sheet.png, before and after.  Masks are
white where a picture is to be repainted, or where its pixels are missing.
"""

import argparse
from collections.abc import Callable
import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jldm.cli.sample import check_writable
from jldm.config import presets
from jldm.config.experiment import Sampling
from jldm.core.errors import UserError
from jldm.core.files import replace_file
from jldm.data import transforms
from jldm.distributed import sharding
from jldm.editing.directions import coordinate_direction, unrelated_directions
from jldm.editing.edict import EDICT
from jldm.inference import canvas, edit
from jldm.inference.generate import Request
from jldm.inference.load import Model, conditioner_of_kind, load
from jldm.media import images as pictures
from jldm.models.conditioners.degradation import Blurred, Downsampled
from jldm.models.conditioners.label import ClassLabel
from jldm.samplers.grid import GRIDS


class Task(NamedTuple):
  """What every kind is given."""

  args: argparse.Namespace
  model: Model
  params: dict
  image: np.ndarray  # uint8 [N, H, W, C or C + 1]
  request: Request
  sampling: Sampling

  @property
  def chosen(self) -> tuple[Request, Sampling]:
    """What every edit takes last."""
    return self.request, self.sampling


class Edited(NamedTuple):
  images: np.ndarray  # uint8 [N n, H, W, C or C + 1], n of each picture
  rows: dict[str, np.ndarray]  # of the sheet
  each: list[dict] | None = None  # what is told of each of images alone


def read_pictures(paths: list[str], model: Model) -> np.ndarray:
  """Picture files of one size as uint8 [N, H, W, C or C + 1] with the model's channels."""
  images = [
    transforms.read_picture(path, lambda image: transforms.to_channels(image, canvas.image_channels(model)))
    for path in paths
  ]
  for path, image in zip(paths, images):
    if image.shape != images[0].shape:
      raise UserError(
        f"{path} is {describe_picture(image)} and {paths[0]} {describe_picture(images[0])}; expected pictures that are alike"
      )
  return np.stack(images)


def describe_picture(image: np.ndarray) -> str:
  return f"{image.shape[1]}x{image.shape[0]} pixels of {image.shape[2]} channels"


def sheet_rows(name: str, images: np.ndarray, count: int) -> dict[str, np.ndarray]:
  """Rows of n edits of each of `count` pictures, images [count n, ...]: below their pictures, or all
  of a single one.
  """
  n = len(images) // count
  return {name: images} if 1 in (n, count) else {f"{name}, {i + 1}": images[i::n] for i in range(n)}


def read_mask(path: str, image: np.ndarray) -> np.ndarray:
  """A mask file as known float32 [1, H, W, 1] of images [N, H, W, C], 0 where it is white."""
  mask = np.asarray(transforms.read_picture(path).convert("L"))
  if mask.shape != image.shape[1:3]:
    raise UserError(
      f"--mask {path} is {mask.shape[1]}x{mask.shape[0]} and --image {image.shape[2]}x{image.shape[1]} pixels; "
      "expected one size"
    )
  if mask.max() < 128:
    raise UserError(f"--mask {path} is empty: it has no white, which says what to repaint")
  return (mask < 128).astype(np.float32)[None, ..., None]


def run_image_to_image(task: Task) -> Edited:
  args, strengths = task.args, parse_numbers("--strength", task.args.strength, float)
  varied = lambda strength: edit.image_to_image(task.model, task.params, task.image, strength, *task.chosen)
  edits = [varied(strength) for strength in strengths]
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
  if not (args.mask or args.margins):
    raise UserError("inpaint without --mask or --margins; say what to repaint")
  known = read_mask(args.mask, image) if args.mask else np.ones((1, *image.shape[1:3], 1), np.float32)
  if args.margins:
    sides = parse_numbers("--margins", args.margins, int)
    if len(sides) not in (1, 4):
      raise UserError(
        f"--margins {args.margins}; expected one number of pixels, or four: top,right,bottom,left"
      )
    image, whole = canvas.extend_pictures(image, *(sides * 4)[:4])
    known = whole if not args.mask else np.pad(known, added_margins(whole))
  images = edit.inpaint(
    task.model, task.params, image, known, args.strength, (args.repeats, args.jump), *task.chosen
  )
  source = {} if args.margins else {"source": image}
  return Edited(
    images, source | {"known": blacken_unknown(image, known)} | sheet_rows("inpainted", images, len(image))
  )


def blacken_unknown(image: np.ndarray, known: np.ndarray) -> np.ndarray:
  """For a sheet: black where it is not known."""
  return pictures.as_rgb(image) * known.astype(np.uint8)


def added_margins(whole: np.ndarray) -> tuple:
  """How much was added on each side, from what is known of a grown picture [1, H, W, 1]."""
  rows, columns = np.flatnonzero(whole[0].any((1, 2))), np.flatnonzero(whole[0].any((0, 2)))
  height, width = whole.shape[1:3]
  return (0, 0), (rows[0], height - 1 - rows[-1]), (columns[0], width - 1 - columns[-1]), (0, 0)


def run_invert(task: Task) -> Edited:
  found = edit.invert(task.model, task.params, task.image, *task.chosen)
  out = Path(task.args.out) / "noise.npz"
  with replace_file(out) as file:
    np.savez_compressed(file, noise=found.noise)
  print(
    f"{out}: {found.psnr.mean():.1f} dB against the autoencoder's reconstruction, max|z| {np.abs(found.noise).max():.2f}"
  )
  return Edited(
    found.reconstruction,
    {"source": task.image, "autoencoder": found.codec, "from its noise": found.reconstruction},
  )


def run_interpolate(task: Task) -> Edited:
  args = task.args
  both = read_pictures([*args.image, args.to], task.model)
  images = edit.interpolate(
    task.model, task.params, both, args.count, args.space, args.strength, *task.chosen
  )
  pictures.write_gif(Path(args.out) / "interpolation.gif", images, edit_provenance(task))
  if args.film:
    pictures.write_mp4(Path(args.out) / "interpolation.mp4", images, edit_provenance(task))
  return Edited(
    images, {"source": both, args.space: images}, [{"share": i / (args.count - 1)} for i in range(args.count)]
  )


def run_translate(task: Task) -> Edited:
  args = task.args
  if args.onto is None:
    images = edit.paired(task.model, task.params, task.image, *task.chosen)
    return Edited(images, {"source": task.image} | sheet_rows("translated", images, len(task.image)))
  images = edit.translate(
    task.model, task.params, task.image, label_given(task.model, args.onto), args.strength, *task.chosen
  )
  return Edited(images, {f"class {args.label}": task.image, f"class {args.onto}": images})


def run_restore(task: Task) -> Edited:
  args, image = task.args, task.image
  degradation = {"blur": lambda: Blurred(args.sigma), "downsample": lambda: Downsampled(args.factor)}.get(
    args.degradation
  )
  known = None
  if args.degradation is None:
    images = edit.paired(task.model, task.params, image, *task.chosen)
  else:
    if (args.degradation == "missing") != bool(args.mask):
      raise UserError(
        "--mask says which pixels are missing: expected with --degradation missing, and with no other"
      )
    known = read_mask(args.mask, image) if args.mask else None
    images = edit.restore(
      task.model, task.params, image, degradation and degradation(), args.noise, known, *task.chosen
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
  if (args.channel is None) == (args.examples is None):
    raise UserError("directions need one of --channel and --examples")
  if args.examples:
    images, flags = read_examples(args, task.image)
    found = edit.attribute(model, task.params, images, flags, args.space, args.controls, *task.chosen)
    name = f"{args.without} to {args.having}"
  else:
    found, name = channel_directions(task), f"channel {args.channel}"
  amounts = np.linspace(-args.reach, args.reach, args.count)
  moved = edit.traverse(
    model, task.params, task.image, found, amounts, args.space, args.strength, *task.chosen
  )
  rows = {"source": task.image, name: moved[0]} | {f"control {i + 1}": row for i, row in enumerate(moved[1:])}
  return Edited(moved[0], rows, [{"amount": float(amount)} for amount in amounts])


def read_examples(args: argparse.Namespace, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Pictures of the two classes of an .npz with images and labels, and which have the attribute."""
  if args.having is None or args.without is None:
    raise UserError("--examples without --having CLASS and --without CLASS; expected both")
  try:
    with np.load(args.examples, allow_pickle=False) as file:
      images, labels = file["images"], file["labels"]
  except (OSError, ValueError, KeyError) as error:
    raise UserError(
      f"--examples {args.examples}: expected an .npz with images and labels, as jldm sample writes"
    ) from error
  if images.shape[1:3] != image.shape[1:3]:
    raise UserError(
      f"--examples {args.examples} are {images.shape[2]}x{images.shape[1]} pixels and --image "
      f"{image.shape[2]}x{image.shape[1]}; expected one size"
    )
  chosen = np.isin(labels, (args.having, args.without))
  return images[chosen], labels[chosen] == args.having


def channel_directions(task: Task) -> np.ndarray:
  """One channel of the latents, or one place of it, and random directions as long: [1 + controls, h, w, c]."""
  import jax

  args, shape = task.args, canvas.open_canvas(task.model, task.image).model.latent_shape
  if args.space != "latents":
    raise UserError("--channel is one of the latents; leave --space out, or give --examples")
  place = tuple(parse_numbers("--place", args.place, int)) if args.place else None
  if not 0 <= args.channel < shape[-1] or (
    place and not (len(place) == 2 and all(0 <= p < n for p, n in zip(place, shape)))
  ):
    raise UserError(
      f"--channel {args.channel} --place {args.place}; expected a channel below {shape[-1]} and a place such as "
      f"0,0 of {shape[0]}x{shape[1]}"
    )
  direction = coordinate_direction(shape, args.channel, place)
  return np.concatenate(
    [
      direction[None],
      unrelated_directions(direction, jax.random.split(jax.random.key(args.seed), args.controls)),
    ]
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


OPTIONS: dict[str, dict[str, Any]] = {
  "--mask": dict(help="a picture as large as --image: white where it is to be repainted, or missing"),
  "--strength": dict(type=float, help="0 keeps the picture, 1 keeps nothing but what is known"),
  "--strength LIST": dict(
    default="0.5", metavar="S", help="0 keeps the picture, 1 forgets it; or a list such as 0.3,0.6"
  ),
  "--n": dict(type=int, default=1, help="how many pictures (default: 1)"),
  "--margins": dict(
    metavar="N", help="pixels to paint around the picture: one number, or top,right,bottom,left"
  ),
  "--repeats": dict(
    type=int, default=1, help="how often each stretch of steps is gone over: RePaint (default: 1, once)"
  ),
  "--jump": dict(type=int, default=10, help="steps of such a stretch (default: 10)"),
  "--to": dict(required=True, metavar="B.png", help="the picture to end at"),
  "--count": dict(type=int, default=9, help="how many pictures, ends included (default: 9)"),
  "--space": dict(choices=("noise", "latents"), help="where to walk"),
  "--film": dict(action="store_true", help="write interpolation.mp4 too; needs pip install 'jldm[video]'"),
  "--onto": dict(
    type=int, metavar="CLASS", help="the class to become; left out for a model that was trained on pairs"
  ),
  "--degradation": dict(
    choices=("noise", "blur", "downsample", "missing"),
    help="what was done to the picture; left out for a model that was trained on pairs",
  ),
  "--noise": dict(
    type=float, default=0.0, help="standard deviation of its noise, where pixels are in [-1, 1] (default: 0)"
  ),
  "--sigma": dict(type=float, default=2.0, help="pixels of the Gaussian of blur (default: 2)"),
  "--factor": dict(
    type=int, default=4, help="of downsample: the picture comes back so many times larger (default: 4)"
  ),
  "--mean": dict(action="store_true", help="the mean of the n pictures alone"),
  "--channel": dict(type=int, help="the channel of the latents to move along"),
  "--place": dict(metavar="ROW,COLUMN", help="of the channel (default: everywhere)"),
  "--examples": dict(
    metavar="S.npz", help="images and labels, as jldm sample writes, to learn a direction from"
  ),
  "--having": dict(type=int, metavar="CLASS", help="the examples with the attribute"),
  "--without": dict(type=int, metavar="CLASS", help="and those without"),
  "--reach": dict(
    type=float, default=2.0, help="how far to go both ways, in lengths of the direction (default: 2)"
  ),
  "--controls": dict(
    type=int, default=2, help="directions as long beside it that have nothing to do with it (default: 2)"
  ),
}
DEFAULTS: dict[str, dict[str, Any]] = {  # of a kind, by destination
  "inpaint": {"strength": 1.0},
  "translate": {"strength": 1.0},
  "interpolate": {"strength": 0.0, "space": "noise"},
  "directions": {"strength": 0.0, "space": "latents"},
}
KINDS = {
  "image-to-image": Kind(
    run_image_to_image, "variations of a picture, near or far", ("--strength LIST", "--n")
  ),
  "inpaint": Kind(
    run_inpaint,
    "repaint what is masked, or paint around",
    ("--mask", "--margins", "--strength", "--n", "--repeats", "--jump"),
  ),
  "invert": Kind(run_invert, "the noise that leads to a picture", ()),
  "interpolate": Kind(
    run_interpolate, "from one picture to another", ("--to", "--count", "--space", "--strength", "--film")
  ),
  "translate": Kind(
    run_translate,
    "a picture of one class as another, or what a model of pairs makes of it",
    ("--onto", "--strength", "--n"),
  ),
  "restore": Kind(
    run_restore,
    "noise, blur, low resolution or missing pixels undone",
    ("--degradation", "--noise", "--sigma", "--factor", "--mask", "--mean", "--n"),
  ),
  "directions": Kind(
    run_directions,
    "along a channel of the latents, or an attribute of examples",
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
  ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
  for name, kind in KINDS.items():
    command = kinds.add_parser(name, help=kind.summary, description=kind.summary)
    command.add_argument(
      "--workdir", required=True, help="a folder that train.py made; nothing else is needed"
    )
    command.add_argument(
      "--image", required=True, nargs="+", metavar="A.png", help="pictures of any kind, and of one size"
    )
    for option in kind.options:
      command.add_argument(option.split()[0], **OPTIONS[option])
    command.add_argument("--label", type=int, default=-1, help="the picture's class (default: -1, unknown)")
    command.add_argument(
      "--sampler",
      help=f"edict, one of {', '.join(sorted(presets.SAMPLERS))}, or one written out "
      "(default: the experiment's, and edict where noise is looked for)",
    )
    command.add_argument("--steps", type=int, help="steps of the sampler (default: the experiment's)")
    command.add_argument(
      "--grid", help=f"where the steps stand: {', '.join(GRIDS)} (default: the experiment's)"
    )
    command.add_argument(
      "--eta", type=float, help="noise of ddim or dpmpp: 0 is deterministic, 1 ancestral or SDE"
    )
    command.add_argument("--guidance-scale", type=float, help="1 is none (default: the experiment's)")
    command.add_argument(
      "--best", action="store_const", const=True, help="the denoiser that was best while training"
    )
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", required=True, metavar="O", help="a folder")
    command.set_defaults(**DEFAULTS.get(name, {}))


def main(args: argparse.Namespace) -> None:
  for name in ("n", "count", "repeats", "jump", "factor"):
    if getattr(args, name, 1) < 1:
      raise UserError(f"--{name} {getattr(args, name)}; expected at least 1")
  if not 0 <= args.seed < 2**32:
    raise UserError(f"--seed {args.seed}; expected 0 to {2**32 - 1}")
  out = Path(args.out)
  if out.suffix == ".npz" or out.is_file():
    raise UserError(f"--out {args.out}; expected a folder")
  check_writable(out)
  sharding.configure(1)
  model, params = load(args.workdir, best=bool(args.best))
  sampling = edit_sampling(args, model.sampling)
  request = Request(n=getattr(args, "n", 1), seed=args.seed, given=label_given(model, args.label))
  task = Task(args, model, params, read_pictures(args.image, model), request, sampling)
  edited = KINDS[args.kind].run(task)
  each, count = edited.each or [{}] * len(edited.images), len(edited.images) // len(task.image)
  sources = [{"source_sha256": file_digest(path)} for path in args.image for _ in range(count)]
  each = [source | own for source, own in zip(sources, each, strict=True)]
  pictures.write_edits(out, edited.images, edited.rows, edit_provenance(task), each)
  print(f"{len(edited.images)} pictures in {out}")


def edit_sampling(args: argparse.Namespace, own: Sampling) -> Sampling:
  """The experiment's sampling with what the options name; without a sampler, the one that the edit
  uses by itself.
  """
  guidance = None if args.guidance_scale is None else presets.make_guidance(scale=args.guidance_scale)
  edict = args.sampler == "edict"
  if edict and args.eta is not None:
    raise UserError(f"--eta {args.eta}: edict draws no noise; leave it out or choose another sampler")
  base = dataclasses.replace(own, sampler=EDICT() if edict else None)
  return presets.override_sampling(
    base, None if edict else args.sampler, args.steps, args.grid, args.eta, guidance
  )


def label_given(model: Model, label: int) -> dict:
  """A class as a request gives it; UserError for one that a model without classes cannot know."""
  name = conditioner_of_kind(model, ClassLabel)
  if name is None and label != -1:
    raise UserError(f"label={label}; expected -1: this model knows no classes")
  return {} if name is None else {name: label}


def edit_provenance(task: Task) -> dict:
  """The kind of edit, the hashes of the files that it read, and its options."""
  hashes, options = {}, {name: value for name, value in vars(task.args).items() if value is not None}
  for option in ("mask", "to", "examples"):
    if path := options.pop(option, None):
      hashes[f"{option}_sha256"] = file_digest(path)
  hashes["source_sha256"] = [file_digest(path) for path in options.pop("image")]
  for option in ("workdir", "out", "command", "kind"):
    options.pop(option, None)
  return {"edit": task.args.kind, **hashes, **options}


def file_digest(path: str) -> str:
  return hashlib.sha256(Path(path).read_bytes()).hexdigest()
