"""What each kind of `jldm edit` does: reads its inputs, edits, and names the rows of the sheet."""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jldm.config.experiment import Sampling
from jldm.core.errors import UserError
from jldm.core.keys import seed_key
from jldm.data import transforms
from jldm.data.arrays import read_npz
from jldm.editing.directions import coordinate_direction, unrelated_directions
from jldm.inference import canvas, edit, latent_edit
from jldm.inference.generate import Request
from jldm.inference.model import Model, conditioner_of_kind
from jldm.media import images as pictures, sheets
from jldm.models.conditioners.degradation import Blurred, Downsampled
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.text import TextConditioner


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
  onto = {} if args.onto is None else label_given(task.model, args.onto)
  onto |= text_given(task.model, "--onto-prompt", args.onto_prompt)
  if not onto:
    images = edit.paired(task.model, task.params, task.image, *task.last)
    return Edited(images, {"source": task.image} | sheet_rows("translated", images, len(task.image)))
  images = latent_edit.translate(task.model, task.params, task.image, onto, args.strength, *task.last)
  if args.onto_prompt is not None:
    return Edited(images, {args.prompt or "source": task.image, args.onto_prompt or "no text": images})
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


def label_given(model: Model, label: int) -> dict:
  """What a request gives for a class; UserError for a class if the model has none."""
  name = conditioner_of_kind(model, ClassLabel)
  if name is None and label != -1:
    raise UserError(f"label={label}; expected -1: this model knows no classes")
  return {} if name is None else {name: label}


def text_given(model: Model, option: str, text: str | None) -> dict:
  """What a request gives for a text; UserError for a text if the model reads none."""
  name = conditioner_of_kind(model, TextConditioner)
  if name is None and text is not None:
    raise UserError(f"{option} {text!r}: this model reads no captions; leave it out")
  return {} if text is None else {name: text}
