"""Edits that go by the latents or the noise behind pictures: inverts, interpolates, translates, moves.

Arguments are those of `jldm.inference.edit`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.config.experiment import Sampling
from jldm.core.errors import UserError
from jldm.core.keys import seed_key
from jldm.core.specs import Loaded
from jldm.editing import directions, image_to_image as sdedit, invert as inversion
from jldm.editing.interpolate import slerp_path
from jldm.editing.translate import translate_latents as translated
from jldm.inference.canvas import close_canvas, open_canvas
from jldm.inference.conditions import Branch
from jldm.inference.edit import (
  REQUEST,
  add_conditions,
  canvas_latents,
  check_share,
  plan_edit,
  refuse_copies,
  run_image_to_image,
)
from jldm.inference.generate import Request, Setup
from jldm.inference.model import Model, resize_model
from jldm.media.images import to_uint8
from jldm.metrics.image import psnr
from jldm.models.codecs import codec as codecs

Array = jax.Array


class Inverted(NamedTuple):
  noise: np.ndarray  # float32 [N, h, w, c], or of EDICT [N, h, w, 2 c]: the pair
  reconstruction: np.ndarray  # uint8 [N, H, W, C], what the noise leads to
  codec: np.ndarray  # uint8 [N, H, W, C], what the autoencoder makes of the pictures
  psnr: np.ndarray  # [N] dB, of the one against the other, before rounding


@functools.partial(jax.jit, static_argnums=0)
def run_invert(model: Model, setup: Setup, x0: Array, strength: Array) -> Array:
  pairs = sdedit.shorten_pairs(setup.pairs, strength)
  return inversion.invert_latents(*setup.arguments(model, x0, pairs=pairs))


@functools.partial(jax.jit, static_argnums=0)
def run_revert(model: Model, setup: Setup, z: Array, strength: Array) -> Array:
  pairs = sdedit.shorten_pairs(setup.pairs, strength)
  return setup.decode(model, inversion.revert_latents(*setup.arguments(model, z, pairs=pairs)))


def invert(
  model: Model, params: dict, images: Any, request: Request = REQUEST, sampling: Sampling | None = None
) -> Inverted:
  """The noise that leads to each picture under its conditions, and back.

  Raises:
    UserError: a sampler that draws noise, and what `open_canvas` and `plan_edit` raise.
  """
  refuse_copies(request)
  canvas = open_canvas(model, images)
  x0 = canvas_latents(canvas, params)
  setup = plan_edit(canvas.model, params, request, sampling, len(x0), invertible=True)
  z = run_invert(canvas.model, setup, x0, jnp.float32(1))
  reconstruction, decoded = (
    run_revert(canvas.model, setup, z, jnp.float32(1)),
    run_decode(canvas.model, params, x0),
  )
  return Inverted(
    np.asarray(z),
    *(close_canvas(canvas, to_uint8(each)) for each in (reconstruction, decoded)),
    np.asarray(psnr(reconstruction, decoded)),
  )


@functools.partial(jax.jit, static_argnums=0)
def run_decode(model: Model, params: dict, z: Array) -> Array:
  return codecs.decode_latents(Loaded(model.codec, params["codec"]), z)


def revert(
  model: Model, params: dict, noise: Any, request: Request = REQUEST, sampling: Sampling | None = None
) -> np.ndarray:
  """The pictures uint8 [N, H', W', C] that noise leads to; H' and W' are sides that the model can halve."""
  model = resize_model(model, tuple(side * model.codec.factor for side in noise.shape[1:3]))
  setup = plan_edit(model, params, request, sampling, len(noise), invertible=True)
  return to_uint8(run_revert(model, setup, jnp.asarray(noise), jnp.float32(1)))


def interpolate(
  model: Model,
  params: dict,
  images: Any,
  count: int = 9,
  space: str = "noise",
  strength: float = 0.0,
  request: Request = REQUEST,
  sampling: Sampling | None = None,
) -> np.ndarray:
  """`count` pictures uint8 [count, H, W, C] from the first of two, images [2, H, W, C], to the second.

  On the sphere between the noises that lead to them, or between their latents; of these, `strength`
  > 0 takes away what is not of the data, by SDEdit with the same noise for all.

  Raises:
    UserError: not two pictures, an unknown space, a strength in noise, and what `open_canvas` and
    `plan_edit` raise.
  """
  refuse_copies(request)
  canvas, in_noise = open_canvas(model, images), check_space(space, strength)
  if len(canvas.images) != 2 or count < 2:
    raise UserError(
      f"{len(canvas.images)} pictures and {count} places; expected two pictures and at least two places"
    )
  model, x0 = canvas.model, canvas_latents(canvas, params)
  whole = canvas._replace(source=canvas.source[:1])
  setup = plan_edit(model, params, request, sampling, count, invertible=in_noise)
  if in_noise:
    ends = run_invert(
      model, plan_edit(model, params, request, sampling, 2, invertible=True), x0, jnp.float32(1)
    )
    return close_canvas(whole, to_uint8(run_revert(model, setup, slerp_path(*ends, count), jnp.float32(1))))
  setup = setup._replace(keys=jnp.repeat(setup.keys[:1], count, 0))
  return close_canvas(
    whole,
    to_uint8(run_image_to_image(model, setup, slerp_path(*x0, count), check_share("strength", strength))),
  )


def check_space(space: str, strength: float) -> bool:
  """Whether it is noise."""
  if space not in ("noise", "latents"):
    raise UserError(f"space={space!r}; expected 'noise' or 'latents'")
  if space == "noise" and strength:
    raise UserError(
      f"strength={strength} in the space of noise, where nothing is noised; leave it out, or choose latents"
    )
  return space == "noise"


@functools.partial(jax.jit, static_argnums=0)
def run_translate(model: Model, setup: Setup, onto: tuple[Branch, ...], x0: Array, strength: Array) -> Array:
  other, pairs = setup._replace(branches=onto).denoise(model), sdedit.shorten_pairs(setup.pairs, strength)
  process, denoise, *rest = setup.arguments(model, x0, pairs=pairs)
  return setup.decode(model, translated(process, denoise, other, *rest))


def translate(
  model: Model,
  params: dict,
  images: Any,
  onto: Any,
  strength: float = 1.0,
  request: Request = REQUEST,
  sampling: Sampling | None = None,
) -> np.ndarray:
  """Pictures under the request's conditions as pictures under those of `onto`, such as {"label": 6},
  by the same noise: uint8 [N, H, W, C]; less strength keeps more of them.

  Raises:
    UserError: a model without conditions, and what `image_to_image` and `invert` raise.
  """
  refuse_copies(request)
  canvas, strength = open_canvas(model, images), check_share("strength", strength)
  model, x0 = canvas.model, canvas_latents(canvas, params)
  if not model.conditioners:
    raise UserError("this model knows no classes; translation needs a class to come from and one to go to")
  setup = plan_edit(model, params, request, sampling, len(x0), invertible=True)
  other = plan_edit(
    model, params, add_conditions(request, **onto), sampling, len(x0), invertible=True
  ).branches
  return close_canvas(canvas, to_uint8(run_translate(model, setup, other, x0, strength)))


def attribute(
  model: Model,
  params: dict,
  examples: Any,
  flags: Any,
  space: str = "latents",
  controls: int = 2,
  request: Request = REQUEST,
  sampling: Sampling | None = None,
) -> np.ndarray:
  """The direction of an attribute, and directions as long that have nothing to do with it: float32 [1
  + controls, h, w, c].

  examples uint8 [N, H, W, C], flags [N] 1 where they have it and 0 where not; c is twice as large
  in the noise of EDICT.

  Raises:
    UserError: flags of one kind only, an unknown space, and what `open_canvas` and `plan_edit` raise.
  """
  if controls < 0:
    raise UserError(f"controls={controls}; expected at least 0")
  canvas, in_noise, flags = (
    open_canvas(model, examples),
    check_space(space, 0),
    jnp.asarray(flags, jnp.float32),
  )
  if flags.shape != (len(canvas.images),) or not 0 < flags.sum() < len(flags):
    raise UserError(
      f"{len(canvas.images)} examples, {int(flags.sum())} of {len(flags)} flags set; expected some of both"
    )
  z = canvas_latents(canvas, params)
  if in_noise:
    z = run_invert(
      canvas.model,
      plan_edit(canvas.model, params, request, sampling, len(z), invertible=True),
      z,
      jnp.float32(1),
    )
  others = directions.control_directions(z, flags, jax.random.split(seed_key(request.seed), controls))
  return np.concatenate([directions.attribute_direction(z, flags)[None], others])


def traverse(
  model: Model,
  params: dict,
  images: Any,
  along: Any,
  amounts: Any,
  space: str = "latents",
  strength: float = 0.0,
  request: Request = REQUEST,
  sampling: Sampling | None = None,
) -> np.ndarray:
  """One picture [1, H, W, C] moved along each of K directions [K, h, w, c] by each of A amounts: uint8
  [K, A, H, W, C].

  `strength` as for `interpolate`.

  Raises:
    UserError: more than one picture, directions of another size, and what `interpolate` raises.
  """
  refuse_copies(request)
  if not np.isfinite(amounts).all():
    raise UserError(f"amounts={np.asarray(amounts).tolist()}; expected finite numbers")
  canvas, in_noise = open_canvas(model, images), check_space(space, strength)
  model, x0, amounts = canvas.model, canvas_latents(canvas, params), jnp.asarray(amounts, jnp.float32)
  z = (
    run_invert(model, plan_edit(model, params, request, sampling, 1, invertible=True), x0, jnp.float32(1))
    if in_noise
    else x0
  )
  if len(x0) != 1 or np.shape(along)[1:] != z.shape[1:]:
    raise UserError(
      f"{len(x0)} pictures, directions of {list(np.shape(along))}; expected one, and [K, "
      f"*{list(z.shape[1:])}]"
    )
  moved = jnp.concatenate(
    [directions.move_along(z[0], direction, amounts) for direction in jnp.asarray(along)]
  )
  setup = plan_edit(model, params, request, sampling, len(moved), invertible=in_noise)
  if in_noise:
    images = run_revert(model, setup, moved, jnp.float32(1))
  else:
    setup = setup._replace(keys=jnp.repeat(setup.keys[:1], len(moved), 0))
    images = run_image_to_image(model, setup, moved, check_share("strength", strength))
  return close_canvas(canvas, to_uint8(images)).reshape(len(along), len(amounts), *canvas.source.shape[1:])
