"""Edits pictures, with explicit parameters; jldm.editing has the operations on latents.

  model, params = load("runs/fashion_mnist")
  edited = image_to_image(model, params, images, strength=0.6)  # uint8 [N, H, W, C], as large as images

Pictures are uint8 [N, H, W, C] of any size, or with alpha besides (jldm.inference.canvas).
`request` is that of `generate`: its n is how many edits of each picture, its conditions are one for
all pictures or one per edit.  `sampling` is that of `generate`, by default the model's, with the
sampler that the edit itself needs.

Strengths, masks, scales, conditions and seeds are traced:
changing them compiles nothing.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.config.experiment import Sampling
from jldm.config.ranges import check_ranges
from jldm.core.errors import UserError
from jldm.core.specs import Loaded
from jldm.editing import (
  image_to_image as sdedit,
  inpaint as inpainting,
  invert as inversion,
  restore as restoring,
)
from jldm.editing.edict import EDICT
from jldm.inference.canvas import Canvas, check_known, close_canvas, open_canvas
from jldm.inference.generate import Request, Setup, check_kinds, set_up
from jldm.inference.model import Model, conditioner_of_kind
from jldm.media.images import to_uint8
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners import masks
from jldm.models.conditioners.degradation import Downsampled
from jldm.models.conditioners.pictures import Masked, Paired
from jldm.samplers.ddim import DDIM
from jldm.samplers.resample import Resample
from jldm.samplers.sample import draw_samples

Array = jax.Array
# The std of a decoder's reconstruction error on pictures in [-1, 1]; a restoration does not fit it.
CODEC_ERROR = 0.03
MOST_NOISE = 1e6
# The sampler of a restoration: its noise takes away what a measurement brought in that is not of the data.
RESTORING = DDIM(1.0)
REQUEST = Request()


@functools.partial(jax.jit, static_argnums=0)
def encode_images(model: Model, codec: dict, images: Array) -> Array:
  """The standardised means of the latents of images uint8, or float in [-1, 1], [B, H, W, C]."""
  return codecs.encode_mean(Loaded(model.codec, codec), {"image": images})


def canvas_latents(canvas: Canvas, params: dict, copies: int = 1) -> Array:
  """Standardised, [N copies, h, w, c]."""
  return jnp.repeat(encode_images(canvas.model, params["codec"], canvas.images), copies, 0)


def plan_edit(
  model: Model,
  params: dict,
  request: Request,
  sampling: Sampling | None,
  count: int,
  *,
  invertible: bool = False,
  default: Any = None,
) -> Setup:
  """What the samplers of an edit of `count` samples are called with.

  invertible: the sampler must lead from data to noise too; by default it is EDICT then.   default: the
  edit's own sampler.

  Raises:
    UserError: what `set_up` refuses, or a sampler that draws noise although it must be invertible.
  """
  check_kinds(request, sampling)
  for name in ("size", "noise", "estimates"):
    if getattr(request, name) not in (None, 0):
      raise UserError(f"{name} of the request of an edit, which has those of its pictures; leave it out")
  sampling = dataclasses.replace(model.sampling, sampler=None) if sampling is None else sampling
  sampler = sampling.sampler or (EDICT() if invertible else default or model.sampling.sampler)
  if isinstance(sampler, EDICT) and not invertible:
    raise UserError(
      "EDICT steps a pair of states, for inversion, and this edit has one state; use another sampler"
    )
  setup = set_up(model, params, request, dataclasses.replace(sampling, sampler=sampler), count)
  if invertible:
    inversion.refuse_noise(model.process, setup.sampler)
  return setup


def edits_per_picture(request: Request) -> int:
  """How many edits of each picture are asked for."""
  check_kinds(request, None)
  return request.n


def refuse_copies(request: Request) -> None:
  """Raises a UserError where several edits of a picture are asked for that would all be the same."""
  if edits_per_picture(request) != 1:
    raise UserError(f"n={request.n} of an edit that draws no noise; expected 1")


def add_conditions(request: Request, **given: Any) -> Request:
  return dataclasses.replace(request, given={**request.given, **given})


def check_share(name: str, value: float) -> Array:
  if not 0 <= value <= 1:
    raise UserError(f"{name}={value}; expected 0 to 1")
  return jnp.float32(value)


@functools.partial(jax.jit, static_argnums=0)
def run_image_to_image(model: Model, setup: Setup, x0: Array, strength: Array) -> Array:
  pairs = sdedit.shorten_pairs(setup.pairs, strength)
  return setup.decode(model, sdedit.vary_latents(*setup.arguments(model, x0, pairs=pairs)))


def image_to_image(
  model: Model,
  params: dict,
  images: Any,
  strength: float = 0.5,
  request: Request = REQUEST,
  sampling: Sampling | None = None,
) -> np.ndarray:
  """SDEdit: n variations of each picture, uint8 [N n, H, W, C]; strength 0 gives its reconstruction, 1
    forgets it.

  Raises:
    UserError: a strength outside [0, 1], and what `open_canvas` and `plan_edit` raise.
  """
  canvas, strength = open_canvas(model, images), check_share("strength", strength)
  x0 = canvas_latents(canvas, params, edits_per_picture(request))
  setup = plan_edit(canvas.model, params, request, sampling, len(x0))
  return close_canvas(canvas, to_uint8(run_image_to_image(canvas.model, setup, x0, strength)))


@functools.partial(jax.jit, static_argnums=0)
def run_inpaint(model: Model, setup: Setup, images: Array, known: Array, strength: Array) -> Array:
  """images float [B, H, W, C], known [B, H, W, 1] -> [B, H, W, C]."""
  hidden = jnp.where(
    strength < 1, images, masks.fill_hidden(images, known)
  )  # below 1, what is hidden is a start
  x0 = encode_images(model, setup.params["codec"], hidden)
  cells, pairs = model.codec.latent_mask(known), sdedit.shorten_pairs(setup.pairs, strength)
  start = jnp.where(strength < 1, x0, cells * x0)
  z = inpainting.inpaint_latents(*setup.arguments(model, x0, cells, pairs=pairs), start)
  return setup.decode(model, z)


def inpaint(
  model: Model,
  params: dict,
  images: Any,
  known: Any,
  strength: float = 1.0,
  repaint: tuple[int, int | None] = (1, None),
  request: Request = REQUEST,
  sampling: Sampling | None = None,
) -> np.ndarray:
  """n fillings of each picture, uint8 [N n, H, W, C], bit for bit the picture where known [H, W] or
  [N, H, W, 1] is 1.

  repaint: (repeats, jump), how often to go over every stretch of `jump` steps: RePaint; once by
    default.  A jump of None is 10, or all steps but one if they are fewer.
  A model that was trained on masked pictures (`Masked`) is given the mask besides.
  `strength` < 1 begins with what is there.

  Raises:
    UserError: a mask of another size or an empty one, and what `image_to_image` raises.
  """
  canvas, strength = open_canvas(model, images), check_share("strength", strength)
  known, model, n = check_known(canvas, known), canvas.model, edits_per_picture(request)
  copies = lambda x: np.repeat(np.asarray(x), n, 0)
  padded = np.pad(known, canvas.margins, mode="edge")
  shown, kept = copies(codecs.pixels(canvas.images)), copies(padded)
  if name := conditioner_of_kind(model, Masked):
    request = add_conditions(request, **{name: (shown, kept)})
  elif needed := conditioner_of_kind(model, Paired):
    raise UserError(
      f"this model was trained with {needed!r}, Paired; inpainting needs Masked, or a model without either"
    )
  setup = plan_edit(model, params, request, sampling, len(shown))
  if repaint[0] != 1 or repaint[1] is not None:
    check_repaint(*repaint)
    setup = setup._replace(
      sampler=Resample(setup.sampler), pairs=inpainting.repaint_pairs(setup.pairs, repaint[1], repaint[0])
    )
  filled = run_inpaint(model, setup, shown, kept, strength)
  return close_canvas(canvas, to_uint8(filled), known)


def check_repaint(repeats: int, jump: int | None) -> None:
  """Raises a UserError for a number of repeats that is not legal, or a jump where nothing is repeated."""
  if not isinstance(repeats, int) or repeats < 1:
    raise UserError(f"repeats={repeats}; expected a whole number of at least 1")
  if repeats == 1:
    raise UserError(
      f"jump={jump} with repeats=1, where nothing is repeated; leave it out, or repeat more often"
    )


@functools.partial(jax.jit, static_argnums=0)
def run_paired(model: Model, setup: Setup) -> Array:
  like = setup.like(model)
  return setup.decode(model, draw_samples(*setup.arguments(model, like)))


def paired(
  model: Model, params: dict, images: Any, request: Request = REQUEST, sampling: Sampling | None = None
) -> np.ndarray:
  """What a model that was trained on pairs (`Paired`) makes of source pictures: uint8 [N n, H, W, C].

  Raises:
    UserError: a model that was not, and what `open_canvas` and `plan_edit` raise.
  """
  name = conditioner_of_kind(model, Paired)
  if name is None:
    raise UserError("this model was not trained on pairs of pictures; use translate or restore")
  canvas = open_canvas(model, images)
  sources = np.repeat(canvas.images, edits_per_picture(request), 0)
  setup = plan_edit(canvas.model, params, add_conditions(request, **{name: sources}), sampling, len(sources))
  return close_canvas(canvas, to_uint8(run_paired(canvas.model, setup)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_restore(
  model: Model, degradation: Any, setup: Setup, measured: Array, known: Array, noise: Array
) -> Array:
  """measured [B, H, W, C], where known [B, H, W, 1]; both smaller after Downsampled."""
  like = setup.like(model)
  measure = lambda z: known * degrade_images(degradation, setup.decode(model, z))
  process, denoise, sampler, *rest = setup.arguments(model, like, measure, known * measured, noise)
  return setup.decode(model, restoring.restore_latents(process, denoise, sampler, *rest))


def degrade_images(degradation: Any, images: Array) -> Array:
  """What is measured of images [B, H, W, C], without noise and before pixels are lost."""
  if isinstance(degradation, Downsampled):
    return degradation(images)[:, :: degradation.factor, :: degradation.factor]
  return images if degradation is None else degradation(images)


def restore(
  model: Model,
  params: dict,
  images: Any,
  degradation: Any = None,
  noise: float = 0.0,
  known: Any = None,
  request: Request = REQUEST,
  sampling: Sampling | None = None,
) -> np.ndarray:
  """n pictures that each of images may have been, uint8 [N n, H, W, C].

  degradation: Blurred or Downsampled of jldm.models.conditioners.degradation, after which images
    are smaller by its factor; None where there is nothing but noise, or missing pixels.
  noise: standard deviation of the noise of pixels in [-1, 1].
  known: 0 where a pixel is missing; without noise the others come back bit for bit.
  sampling: by default ancestral steps, whose fresh noise takes away what a measurement brought in
    that is not of the data.

  Raises:
    UserError: a noise or a degradation out of its range, a mask that does not fit, and what
      `open_canvas` and `plan_edit` raise.
  """
  if not 0 <= noise <= MOST_NOISE:
    raise UserError(f"noise={noise}; expected at least 0 and at most {MOST_NOISE:g}, for pixels in [-1, 1]")
  check_ranges(degradation, "degradation")
  factor = degradation.factor if isinstance(degradation, Downsampled) else 1
  canvas = open_canvas(model, np.asarray(images).repeat(factor, 1).repeat(factor, 2))
  model, n, seen = (
    canvas.model,
    edits_per_picture(request),
    np.broadcast_to(canvas.inside, (*canvas.images.shape[:3], 1)),
  )
  if known is not None:
    known = check_known(canvas, known)
    seen = np.pad(known, canvas.margins)
  setup = plan_edit(model, params, request, sampling, len(canvas.images) * n, default=RESTORING)
  thinned = lambda x: jnp.repeat(jnp.asarray(x)[:, ::factor, ::factor], n, 0)
  std = jnp.float32(np.hypot(noise, CODEC_ERROR))
  restored = run_restore(model, degradation, setup, thinned(codecs.pixels(canvas.images)), thinned(seen), std)
  return close_canvas(canvas, to_uint8(restored), None if noise else known)


def average_edits(images: np.ndarray, n: int) -> np.ndarray:
  """The mean of n edits of each picture, uint8 [N n, H, W, C] -> [N, H, W, C]."""
  return np.rint(images.reshape(-1, n, *images.shape[1:]).mean(1)).astype(np.uint8)
