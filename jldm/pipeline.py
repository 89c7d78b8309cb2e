"""From a workdir to pictures, over explicit parameters.

  model, params = pipeline.load("runs/digits")
  images = pipeline.generate(model, params, labels=[3] * 8, seed=0, guidance_scale=2.0)  # uint8 [8, H, W, C]
"""

import dataclasses
import functools
import inspect
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm import sharding, workdir as workdirs
from jldm.checkpoint import Checkpoints
from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.core.trees import traced
from jldm.diffusion.target import denoiser, refuse_singular
from jldm.experiment import Experiment
from jldm.models import codec as codecs
from jldm.models.conditioners import masks
from jldm.pictures import to_uint8
from jldm.samplers import grid
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.guidance import ClassifierFree, guided
from jldm.samplers.heun import Heun
from jldm.samplers.sample import Denoise, draw as draw_latents
from jldm.train.ema import reconstruct

Array = jax.Array

SAMPLERS = {"ddim": DDIM, "heun": Heun, "dpmpp_2m": DPMSolverPP}


@dataclasses.dataclass(frozen=True)
class Model:
  """What sampling needs to know besides parameters; static under jit."""

  autoencoder: Any  # linen Module with encode and decode
  denoiser: Any  # linen Module
  process: Any
  parametrization: Any
  latent_shape: tuple[int, int, int]
  classes: int
  self_conditioning: bool
  sampling: Any
  condition: Any = None  # what the denoiser is told of the data beside z


def of(experiment: Experiment) -> Model:
  """The model of an experiment."""
  autoencoder, diffusion, data = experiment.autoencoder.objective.network, experiment.denoiser.objective, experiment.data
  shape = (data.height // autoencoder.factor, data.width // autoencoder.factor, autoencoder.latent_channels)
  conditioned = getattr(diffusion, "self_conditioning", 0) > 0
  return Model(
    autoencoder, diffusion.network, diffusion.process, diffusion.parametrization, shape, data.classes, conditioned,
    experiment.sampling, getattr(diffusion, "condition", None),
  )


def codec_shapes(model: Model) -> dict:
  """The codec's tree as shapes, nothing allocated."""
  factor, (h, w, c) = model.autoencoder.factor, model.latent_shape
  image = jax.ShapeDtypeStruct((1, h * factor, w * factor, model.autoencoder.channels), jnp.float32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  vector = jax.ShapeDtypeStruct((c,), jnp.float32)
  extra = dict(jax.eval_shape(model.autoencoder.init, jax.random.key(0), image, keys))
  return {"params": extra.pop("params"), "extra": extra, "mean": vector, "std": vector}


def denoiser_shapes(model: Model) -> Any:
  """The denoiser's parameters as shapes, nothing allocated."""
  z, level = jnp.zeros((1, *model.latent_shape)), jnp.zeros(1)
  told = {"concat": jnp.zeros((1, *concat_shape(model)))} if model.condition else {}
  return jax.eval_shape(model.denoiser.init, jax.random.key(0), z, level, jnp.zeros(1, jnp.int32), **told)["params"]


def concat_shape(model: Model) -> tuple[int, int, int]:
  """Of a condition beside z, one sample's."""
  *grid, channels = model.latent_shape
  return *grid, model.condition.channels(channels)


def load(workdir: str | Path, sigma_rel: float | None = None) -> tuple[Model, dict]:
  """The model of a workdir and its averaged parameters {"denoiser", "codec"}, from the newest good checkpoints.

  `sigma_rel` makes the denoiser's average anew with another length, as a share of the training: EDM2 (2312.02696).

  Raises:
    UserError: not a workdir, a stage has no checkpoint yet, or `sigma_rel` where no averages were kept.
  """
  workdir = Path(workdir)
  model = of(workdirs.read(workdir))
  wanted = {"autoencoder": ("codec", codec_shapes(model)), "denoiser": ("ema", denoiser_shapes(model))}
  found = {}
  for stage, (item, like) in wanted.items():
    with Checkpoints(workdirs.checkpoints(workdir, stage), read_only=True) as saved:
      step = saved.latest()
      if step is None or item not in saved.items(step):
        raise UserError(f"workdir {str(workdir)!r} has no trained {stage} yet; run train.py on it first")
      found[item] = saved.restore(step, {item: like})[item]
  if sigma_rel is not None:
    found["ema"] = average(workdir, sigma_rel, found["ema"])
  return model, {"denoiser": found["ema"], "codec": found["codec"]}


def average(workdir: Path, sigma_rel: float, like: Any) -> Any:
  """The denoiser's parameters averaged with the profile of `sigma_rel` up to the newest snapshot."""
  with Checkpoints(workdirs.averages(workdir, "denoiser"), read_only=True) as kept:
    if not kept.steps():
      raise UserError(f"workdir {str(workdir)!r} kept no averages; train with --set 'denoiser.ema=Power((0.05, 0.1))'")
    restore = lambda step, item: lambda: kept.restore(step, {item: like})[item]
    snapshots = [((step, float(item)), restore(step, item)) for step in kept.steps() for item in kept.items(step)]
    return reconstruct(sigma_rel, kept.steps()[-1], snapshots)


def make_sampler(name: str, **choices: float) -> Any:
  """A sampler by name, with its own choices, such as eta of ddim.

  Raises:
    UserError: an unknown name, or a choice that this sampler does not have.
  """
  if name not in SAMPLERS:
    raise UserError(f"sampler={name!r}; expected one of {sorted(SAMPLERS)}")
  unknown = set(choices) - set(inspect.signature(SAMPLERS[name]).parameters)
  if unknown:
    raise UserError(f"sampler {name!r} has no {', '.join(sorted(unknown))}; leave it out or choose another sampler")
  return SAMPLERS[name](**choices)


@functools.partial(jax.jit, static_argnums=0)
def draw(
  model: Model, params: dict, sampler: Any, labels: Array, pairs: Array, guidance_scale: Array, keys: Array,
  concat: Array | None = None, condition_scale: Array | None = None,
) -> Array:
  """Images [B, H, W, C] in [-1, 1] of labels int [B] (-1: unconditional), over pairs of times [N, 2]; keys [B].

  `concat` [B, h, w, Cc] is the condition of a model that has one.  Compiled once a batch size, step count and kind of
  sampler: all else is traced.
  """
  denoise = guide(model, params["denoiser"], labels, guidance_scale, concat, condition_scale)
  like = jax.ShapeDtypeStruct((len(labels), *model.latent_shape), jnp.float32)
  z = draw_latents(model.process, denoise, sampler, like, pairs, keys, model.self_conditioning)
  return codecs.decode(model.autoencoder, params["codec"], z)


def guide(
  model: Model, params: Any, labels: Array, guidance_scale: Array, concat: Array | None, condition_scale: Array | None
) -> Denoise:
  """The denoiser of a model with its labels and its condition, both guided.

  With weights s of the label and c of the condition: s e(label, concat) + (c - s) e(-1, concat) + (1 - c) e(-1, 0), Brooks
  et al. 2022 (2211.09800), eq. 3; where no c is given it is 1, and the last is not evaluated.
  """

  def apply(z: Array, level: Array, condition: dict, *estimate: Array) -> Any:
    told = dict(condition)
    return model.denoiser.apply({"params": params}, z, level, told.pop("labels"), *estimate, **told)

  unknown = jnp.full_like(labels, -1)
  beside = lambda concat: {} if concat is None else {"concat": concat}
  told, scales = [{"labels": some} | beside(concat) for some in (labels, unknown)], [guidance_scale]
  if concat is not None and condition_scale is not None:
    told.append({"labels": unknown} | beside(jnp.zeros_like(concat)))
    scales.append(condition_scale - guidance_scale)
  rule = ClassifierFree(jnp.stack(scales)[:, None])
  return guided(model.process, denoiser(model.process, model.parametrization, apply), told, rule)


def generate(
  model: Model,
  params: dict,
  labels: Any,
  seed: int = 0,
  sampler: Any = None,
  steps: int | None = None,
  guidance_scale: float | None = None,
  size: tuple[int, int] | None = None,
  batch_size: int = 250,
  devices: int | None = None,
  progress: Any = iter,
  concat: Any = None,
  condition_scale: float | None = None,
) -> np.ndarray:
  """Images uint8 [N, H, W, C], one a label (int [N], -1: unconditional); what is left out stands in `model.sampling`.

  Sample i depends on (seed, i) and its label alone, whatever the batch size and the devices.  `size` is (H, W) where
  it is not that of the training data.  `progress` wraps the iterator over batches (tqdm).  `concat` [N, h, w, Cc] is what
  `condition` made of pictures, for a model that has a condition; `condition_scale` guides by it (None: no guidance).

  Raises:
    UserError: no labels, a label or a size that is not legal, steps < 1, a network that says nothing at one of the
      times, or a condition where the model has none, or none where it has one.
  """
  labels = check_labels(np.asarray(labels, np.int32), model.classes)
  model = model if size is None else resized(model, size)
  check_concat(model, concat, len(labels), condition_scale)
  steps = model.sampling.steps if steps is None else steps
  scale = model.sampling.guidance_scale if guidance_scale is None else guidance_scale
  pairs = times(model, steps)
  sampler = traced(make_sampler(model.sampling.sampler) if sampler is None else sampler)
  parts = min(len(sharding.choose(devices)), len(labels))
  batch_size = math.ceil(min(batch_size, len(labels)) / parts) * parts  # what is over is drawn and dropped
  mesh = sharding.data_mesh(batch_size, parts)
  whole = (params, sampler, pairs, traced(scale), traced(condition_scale), jax.random.key(seed))
  params, sampler, pairs, scale, condition_scale, key = sharding.place(mesh, whole)
  images = []
  for start in progress(range(0, len(labels), batch_size)):
    rows = np.arange(start, start + batch_size)
    read = np.minimum(rows, len(labels) - 1)
    told = None if concat is None else np.asarray(concat, np.float32)[read]
    some, numbers, told = sharding.place_batch(mesh, (labels[read], rows.astype(np.uint32), told))
    keys = row_keys(key, numbers)
    images.append(to_uint8(draw(model, params, sampler, some, pairs, scale, keys, told, condition_scale)))
  return np.concatenate(images)[: len(labels)]


def condition(model: Model, params: dict, images: Any, known: Any = None, batch_size: int = 250) -> np.ndarray:
  """What a model with a condition is told of pictures: float32 [N, h, w, Cc].

  images uint8, or float in [-1, 1], [N, H, W, C]: those of which parts are known, where `known` [N, H, W, 1] is 1, or the
  source pictures of a `Paired` model.  A latent is known where every pixel of it is.

  Raises:
    UserError: a model without a condition, a mask where none is asked for or the other way round, or one of another size.
  """
  if model.condition is None:
    raise UserError("this model was trained without a condition; draw from it without one")
  masked = hasattr(model.condition, "beside")
  if masked != (known is not None):
    told = "expected known [N, H, W, 1], 1 where it is kept" if masked else "it has no use for a mask; leave known out"
    raise UserError(f"a model conditioned by {type(model.condition).__name__}: {told}")
  if masked and (known := np.asarray(known, np.float32)).shape != (*images.shape[:3], 1):
    raise UserError(f"known of shape {known.shape} and images of {images.shape}; expected {(*images.shape[:3], 1)}")
  whole = np.concatenate([
    encode(model, params["codec"], images[start : start + batch_size]) for start in range(0, len(images), batch_size)
  ])
  if not masked:
    return whole
  return np.asarray(model.condition.beside(whole, masks.coarse(known, model.autoencoder.factor)))


@functools.partial(jax.jit, static_argnums=0)
def encode(model: Model, codec: dict, images: Array) -> Array:
  """The standardised means of the latents of images uint8, or float in [-1, 1], [B, H, W, C]."""
  statistics = codecs.Statistics(codec["mean"], codec["std"])
  return codecs.standardised(statistics, codecs.encode(model.autoencoder, codec, images).mean)


def check_concat(model: Model, concat: Any, count: int, condition_scale: float | None = None) -> None:
  """Raises a UserError where a condition is missing, or there is none, or its shape or scale does not fit."""
  kind = type(model.condition).__name__
  if concat is None and model.condition is not None:
    raise UserError(
      f"this model was trained beside a condition, {kind}, and cannot draw without one; give it pictures from Python: "
      "generate(..., concat=pipeline.condition(model, params, pictures))"
    )
  if concat is not None and model.condition is None:
    raise UserError("this model was trained without a condition; leave concat out")
  if concat is not None and np.shape(concat) != (expected := (count, *concat_shape(model))):
    raise UserError(f"concat of shape {np.shape(concat)}; expected {expected}")
  if condition_scale is not None and not getattr(model.condition, "dropout", 0):
    raise UserError(
      f"condition_scale={condition_scale}, but this model was not trained both with a condition and without; leave it out, or "
      "train with a dropout of the condition"
    )


def times(model: Model, steps: int) -> Array:
  """The pairs [steps, 2] that are walked, the same for every sampler.

  Raises:
    UserError: steps < 1, or a network that says nothing at one of them.
  """
  pairs = grid.chain(grid.uniform(steps))
  refuse_singular(model.process, model.parametrization, np.asarray(pairs[:, 0]))
  return pairs


def resized(model: Model, size: tuple[int, int]) -> Model:
  """The model for images of (H, W).

  Raises:
    UserError: sides that the autoencoder or the denoiser cannot halve.
  """
  factor = model.autoencoder.factor
  if min(size) < 1 or any(side % factor for side in size):
    raise UserError(f"size {size[0]}x{size[1]}; expected sides divisible by the autoencoder's factor {factor}")
  model = dataclasses.replace(model, latent_shape=(size[0] // factor, size[1] // factor, model.latent_shape[-1]))
  denoiser_shapes(model)
  return model


def check_labels(labels: np.ndarray, classes: int) -> np.ndarray:
  if not len(labels):
    raise UserError("n=0; expected at least 1 sample")
  illegal = labels[(labels < -1) | (labels >= classes)]
  if illegal.size:
    legal = f"-1 (unconditional) or 0 to {classes - 1}" if classes else "-1: this model knows no classes"
    raise UserError(f"label={illegal[0]}; expected {legal}")
  return labels
