"""From pictures to edited pictures, over explicit parameters; what is done to latents stands in jldm.editing.

  model, params = pipeline.load("runs/fashion_mnist")
  edited = edit.image_to_image(model, params, images, strength=0.6)  # uint8 [N, H, W, C], as large as images

Pictures are uint8 [N, H, W, C] of any size, or with alpha besides (jldm.inference.canvas).  A label is one, or one a picture, -1:
unknown.  Strengths, masks, scales, labels and seeds are traced: changing them compiles nothing.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.editing import directions, image_to_image as sdedit, inpaint as inpainting, invert as inversion, restore as restoring
from jldm.editing.interpolate import between
from jldm.editing.translate import translate as translated
from jldm.inference import pipeline
from jldm.inference.canvas import Canvas, check_known, closed, opened
from jldm.inference.pipeline import Model
from jldm.inference.walk import How, Walk, begin
from jldm.media.images import to_uint8
from jldm.metrics.image import psnr
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners import masks
from jldm.models.conditioners.degradation import Downsampled
from jldm.samplers.ddim import DDIM
from jldm.samplers.resample import Resample
from jldm.samplers.sample import draw

Array = jax.Array

CODEC_ERROR = 0.03  # std of what a decoder cannot say of a picture in [-1, 1]: a restoration does not chase it


def latents(canvas: Canvas, params: dict, copies: int = 1) -> Array:
  """Standardised, [N copies, h, w, c]."""
  return jnp.repeat(pipeline.encode(canvas.model, params["codec"], canvas.images), copies, 0)


def check_share(name: str, value: float) -> Array:
  if not 0 <= value <= 1:
    raise UserError(f"{name}={value}; expected 0 to 1")
  return jnp.float32(value)


@functools.partial(jax.jit, static_argnums=0)
def run_image_to_image(model: Model, walk: Walk, x0: Array, strength: Array) -> Array:
  pairs = sdedit.shortened(walk.pairs, strength)
  return walk.decoded(model, sdedit.image_to_image(*walk.told(model, x0, pairs=pairs)))


def image_to_image(
  model: Model, params: dict, images: Any, strength: float = 0.5, label: Any = -1, n: int = 1, how: How = How()
) -> np.ndarray:
  """SDEdit: `n` variations a picture, uint8 [N n, H, W, C]; strength 0 gives its reconstruction, 1 forgets it.

  Raises:
    UserError: a strength outside [0, 1], and what `opened` and `begin` raise.
  """
  canvas, strength = opened(model, images), check_share("strength", strength)
  x0 = latents(canvas, params, n)
  walk = begin(canvas.model, params, how, label, len(x0))
  return closed(canvas, to_uint8(run_image_to_image(canvas.model, walk, x0, strength)))


@functools.partial(jax.jit, static_argnums=0)
def run_inpaint(model: Model, walk: Walk, images: Array, known: Array, strength: Array) -> Array:
  """images float [B, H, W, C], known [B, H, W, 1] -> [B, H, W, C]."""
  hidden = jnp.where(strength < 1, images, masks.filled(images, known))  # below 1, what is hidden is a start
  encode = functools.partial(pipeline.encode, model, walk.params["codec"])
  x0 = encode(hidden)
  cells, pairs = masks.coarse(known, model.autoencoder.factor), sdedit.shortened(walk.pairs, strength)
  start = jnp.where(strength < 1, x0, cells * x0)
  if model.condition is not None:
    walk = walk._replace(concat=model.condition.beside(encode, images, known))
  z = inpainting.inpaint(*walk.told(model, x0, cells, pairs=pairs), start)
  return walk.decoded(model, z)


def inpaint(
  model: Model, params: dict, images: Any, known: Any, label: Any = -1, n: int = 1, strength: float = 1.0, repeats: int = 1,
  jump: int = 10, how: How = How(),
) -> np.ndarray:
  """`n` fillings of each picture, uint8 [N n, H, W, C], bit for bit the picture where known [H, W] or [N, H, W, 1] is 1.

  `repeats` > 1 goes over every stretch of `jump` steps that often: RePaint.  A model that was trained on masked pictures
  (`Masked`) is told the mask besides.  `strength` < 1 begins with what is there.

  Raises:
    UserError: a mask of another size or an empty one, and what `image_to_image` raises.
  """
  canvas, strength = opened(model, images), check_share("strength", strength)
  known, model, count = check_known(canvas, known), canvas.model, len(images) * n
  if model.condition is not None and not hasattr(model.condition, "beside"):
    kind = type(model.condition).__name__
    raise UserError(f"this model was trained beside a condition, {kind}; inpainting needs Masked, or a model without one")
  beside = None if model.condition is None else jnp.zeros((count, *pipeline.concat_shape(model)))
  walk = begin(model, params, how, label, count, beside=beside)
  if repeats > 1:
    walk = walk._replace(sampler=Resample(walk.sampler), pairs=inpainting.repainted(walk.pairs, jump, repeats))
  copies = lambda x: jnp.repeat(jnp.asarray(x), n, 0)
  padded = np.pad(known, canvas.margins, mode="edge")
  filled = run_inpaint(model, walk, copies(codecs.pixels(canvas.images)), copies(padded), strength)
  return closed(canvas, to_uint8(filled), known)


class Inverted(NamedTuple):
  noise: np.ndarray  # float32 [N, h, w, c], or of EDICT [N, h, w, 2 c]: the pair
  reconstruction: np.ndarray  # uint8 [N, H, W, C], what the noise leads to
  codec: np.ndarray  # uint8 [N, H, W, C], what the autoencoder makes of the pictures
  psnr: np.ndarray  # [N] dB, of the one against the other, before rounding


@functools.partial(jax.jit, static_argnums=0)
def run_invert(model: Model, walk: Walk, x0: Array, strength: Array) -> Array:
  pairs = sdedit.shortened(walk.pairs, strength)
  return inversion.invert(*walk.told(model, x0, pairs=pairs))


@functools.partial(jax.jit, static_argnums=0)
def run_revert(model: Model, walk: Walk, z: Array, strength: Array) -> Array:
  pairs = sdedit.shortened(walk.pairs, strength)
  return walk.decoded(model, inversion.revert(*walk.told(model, z, pairs=pairs)))


def invert(model: Model, params: dict, images: Any, label: Any = -1, how: How = How()) -> Inverted:
  """The noise that leads to each picture under its label, and back.

  Raises:
    UserError: a sampler that draws noise, and what `opened` and `begin` raise.
  """
  canvas = opened(model, images)
  x0 = latents(canvas, params)
  walk = begin(canvas.model, params, how, label, len(x0), back=True)
  z = run_invert(canvas.model, walk, x0, jnp.float32(1))
  back, plain = run_revert(canvas.model, walk, z, jnp.float32(1)), run_decode(canvas.model, params, x0)
  return Inverted(np.asarray(z), *(closed(canvas, to_uint8(each)) for each in (back, plain)), np.asarray(psnr(back, plain)))


@functools.partial(jax.jit, static_argnums=0)
def run_decode(model: Model, params: dict, z: Array) -> Array:
  return codecs.decode(model.autoencoder, params["codec"], z, model.tiles)


def revert(model: Model, params: dict, noise: Any, label: Any = -1, how: How = How()) -> np.ndarray:
  """The pictures uint8 [N, H', W', C] that noise leads to; H' and W' are sides that the model can halve."""
  model = pipeline.resized(model, tuple(side * model.autoencoder.factor for side in noise.shape[1:3]))
  walk = begin(model, params, how, label, len(noise), back=True)
  return to_uint8(run_revert(model, walk, jnp.asarray(noise), jnp.float32(1)))


def interpolate(
  model: Model, params: dict, images: Any, count: int = 9, space: str = "noise", strength: float = 0.0, label: Any = -1,
  how: How = How(),
) -> np.ndarray:
  """`count` pictures uint8 [count, H, W, C] from the first of two, images [2, H, W, C], to the second.

  On the sphere between the noises that lead to them, or between their latents; of these, `strength` > 0 takes away what is
  not of the data, by SDEdit with the same noise for all.

  Raises:
    UserError: not two pictures, an unknown space, a strength in noise, and what `opened` and `begin` raise.
  """
  canvas, back = opened(model, images), check_space(space, strength)
  if len(canvas.images) != 2 or count < 2:
    raise UserError(f"{len(canvas.images)} pictures and {count} places; expected two pictures and at least two places")
  model, x0 = canvas.model, latents(canvas, params)
  whole = canvas._replace(source=canvas.source[:1])
  walk = begin(model, params, how, label, count, back)
  if back:
    ends = run_invert(model, begin(model, params, how, label, 2, back), x0, jnp.float32(1))
    return closed(whole, to_uint8(run_revert(model, walk, between(*ends, count), jnp.float32(1))))
  walk = walk._replace(keys=jnp.repeat(walk.keys[:1], count, 0))
  return closed(whole, to_uint8(run_image_to_image(model, walk, between(*x0, count), check_share("strength", strength))))


def check_space(space: str, strength: float) -> bool:
  """Whether it is noise."""
  if space not in ("noise", "latents"):
    raise UserError(f"space={space!r}; expected 'noise' or 'latents'")
  if space == "noise" and strength:
    raise UserError(f"strength={strength} in the space of noise, where nothing is noised; leave it out, or choose latents")
  return space == "noise"


@functools.partial(jax.jit, static_argnums=0)
def run_translate(model: Model, walk: Walk, labels: Array, x0: Array, strength: Array) -> Array:
  onto, pairs = walk._replace(labels=labels).denoise(model), sdedit.shortened(walk.pairs, strength)
  process, denoise, *rest = walk.told(model, x0, pairs=pairs)
  return walk.decoded(model, translated(process, denoise, onto, *rest))


def translate(
  model: Model, params: dict, images: Any, label: Any, onto: Any, strength: float = 1.0, how: How = How()
) -> np.ndarray:
  """Pictures of class `label` as class `onto`, by the same noise, uint8 [N, H, W, C]; less strength keeps more of them.

  Raises:
    UserError: a model without classes, and what `image_to_image` and `invert` raise.
  """
  canvas, strength = opened(model, images), check_share("strength", strength)
  model, x0 = canvas.model, latents(canvas, params)
  if not model.classes:
    raise UserError("this model knows no classes; translation needs a class to come from and one to go to")
  walk = begin(model, params, how, label, len(x0), back=True)
  other = begin(model, params, how, onto, len(x0), back=True).labels
  return closed(canvas, to_uint8(run_translate(model, walk, other, x0, strength)))


@functools.partial(jax.jit, static_argnums=0)
def run_paired(model: Model, walk: Walk) -> Array:
  like = jax.ShapeDtypeStruct((len(walk.keys), *model.latent_shape), jnp.float32)
  return walk.decoded(model, draw(*walk.told(model, like)))


def paired(model: Model, params: dict, images: Any, label: Any = -1, n: int = 1, how: How = How()) -> np.ndarray:
  """What a model that was trained on pairs (`Paired`) makes of source pictures: uint8 [N n, H, W, C].

  Raises:
    UserError: a model that was not, and what `opened` and `begin` raise.
  """
  if model.condition is None or hasattr(model.condition, "beside"):
    raise UserError("this model was not trained on pairs of pictures; say what to translate, or what is to be restored")
  canvas = opened(model, images)
  told = latents(canvas, params, n)
  walk = begin(canvas.model, params, how, label, len(told), beside=told)
  return closed(canvas, to_uint8(run_paired(canvas.model, walk)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def run_restore(model: Model, degradation: Any, walk: Walk, measured: Array, known: Array, noise: Array) -> Array:
  """measured [B, H, W, C], where known [B, H, W, 1]; both smaller after Downsampled."""
  like = jax.ShapeDtypeStruct((len(walk.keys), *model.latent_shape), jnp.float32)
  measure = lambda z: known * spoilt(degradation, walk.decoded(model, z))
  process, denoise, sampler, *rest = walk.told(model, like, measure, known * measured, noise)
  return walk.decoded(model, restoring.restore(process, denoise, sampler, *rest))


def spoilt(degradation: Any, images: Array) -> Array:
  """What is measured of images [B, H, W, C], without noise and before pixels are lost."""
  if isinstance(degradation, Downsampled):
    return degradation(images)[:, :: degradation.factor, :: degradation.factor]
  return images if degradation is None else degradation(images)


def restore(
  model: Model, params: dict, images: Any, degradation: Any = None, noise: float = 0.0, known: Any = None, label: Any = -1,
  n: int = 1, mean: bool = False, how: How = How(),
) -> np.ndarray:
  """`n` pictures that each of images may have been, uint8 [N n, H, W, C], or with `mean` their mean [N, H, W, C].

  degradation: Blurred or Downsampled of jldm.models.conditioners.degradation, after which images are smaller by its
    factor; None where there is nothing but noise, or missing pixels.
  noise: standard deviation of the noise of pixels in [-1, 1].
  known: 0 where a pixel is missing; without noise the others come back bit for bit.
  how: by default ancestral steps, whose fresh noise takes away what a measurement brought in that is not of the data.

  Raises:
    UserError: a negative noise, a mask that does not fit, and what `opened` and `begin` raise.
  """
  if noise < 0:
    raise UserError(f"noise={noise}; expected at least 0, for pixels in [-1, 1]")
  factor = degradation.factor if isinstance(degradation, Downsampled) else 1
  canvas = opened(model, np.asarray(images).repeat(factor, 1).repeat(factor, 2))
  model, count, seen = canvas.model, len(canvas.images) * n, np.broadcast_to(canvas.inside, (*canvas.images.shape[:3], 1))
  if known is not None:
    known = check_known(canvas, known)
    seen = np.pad(known, canvas.margins)
  how = dataclasses.replace(how, sampler=how.sampler or DDIM(1.0))
  walk = begin(model, params, how, label, count)
  thinned = lambda x: jnp.repeat(jnp.asarray(x)[:, ::factor, ::factor], n, 0)
  std = jnp.float32(np.hypot(noise, CODEC_ERROR))
  restored = run_restore(model, degradation, walk, thinned(codecs.pixels(canvas.images)), thinned(seen), std)
  if mean:
    restored = restored.reshape(len(canvas.images), n, *restored.shape[1:]).mean(1)
  return closed(canvas, to_uint8(restored), None if noise else known)


def attribute(
  model: Model, params: dict, examples: Any, flags: Any, space: str = "latents", label: Any = -1, controls: int = 2,
  how: How = How(),
) -> np.ndarray:
  """The direction of an attribute, and directions as long that have nothing to do with it: float32 [1 + controls, h, w, c].

  examples uint8 [N, H, W, C], flags [N] 1 where they have it and 0 where not; c is twice as large in the noise of EDICT.

  Raises:
    UserError: flags of one kind only, an unknown space, and what `opened` and `begin` raise.
  """
  canvas, back, flags = opened(model, examples), check_space(space, 0), jnp.asarray(flags, jnp.float32)
  if flags.shape != (len(canvas.images),) or not 0 < flags.sum() < len(flags):
    raise UserError(f"{len(canvas.images)} examples, {int(flags.sum())} of {len(flags)} flags set; expected some of both")
  z = latents(canvas, params)
  if back:
    z = run_invert(canvas.model, begin(canvas.model, params, how, label, len(z), back), z, jnp.float32(1))
  others = directions.controls(z, flags, jax.random.split(jax.random.key(how.seed), controls))
  return np.concatenate([directions.attribute(z, flags)[None], others])


def traverse(
  model: Model, params: dict, images: Any, found: Any, amounts: Any, space: str = "latents", strength: float = 0.0,
  label: Any = -1, how: How = How(),
) -> np.ndarray:
  """One picture [1, H, W, C] moved along each of K directions [K, h, w, c] by each of A amounts: uint8 [K, A, H, W, C].

  `strength` as for `interpolate`.

  Raises:
    UserError: more than one picture, directions of another size, and what `interpolate` raises.
  """
  canvas, back = opened(model, images), check_space(space, strength)
  model, x0, amounts = canvas.model, latents(canvas, params), jnp.asarray(amounts, jnp.float32)
  z = run_invert(model, begin(model, params, how, label, 1, back), x0, jnp.float32(1)) if back else x0
  if len(x0) != 1 or np.shape(found)[1:] != z.shape[1:]:
    raise UserError(f"{len(x0)} pictures, directions of {list(np.shape(found))}; expected one, and [K, *{list(z.shape[1:])}]")
  moved = jnp.concatenate([directions.along(z[0], direction, amounts) for direction in jnp.asarray(found)])
  walk = begin(model, params, how, label, len(moved), back)
  if back:
    images = run_revert(model, walk, moved, jnp.float32(1))
  else:
    walk = walk._replace(keys=jnp.repeat(walk.keys[:1], len(moved), 0))
    images = run_image_to_image(model, walk, moved, check_share("strength", strength))
  return closed(canvas, to_uint8(images)).reshape(len(found), len(amounts), *canvas.source.shape[1:])
