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
from jldm.pictures import to_uint8
from jldm.samplers import grid
from jldm.samplers.ddim import DDIM
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.guidance import ClassifierFree, guided
from jldm.samplers.heun import Heun
from jldm.samplers.sample import draw as draw_latents
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


def of(experiment: Experiment) -> Model:
  """The model of an experiment."""
  autoencoder, diffusion, data = experiment.autoencoder.objective.network, experiment.denoiser.objective, experiment.data
  shape = (data.height // autoencoder.factor, data.width // autoencoder.factor, autoencoder.latent_channels)
  conditioned = getattr(diffusion, "self_conditioning", 0) > 0
  return Model(
    autoencoder, diffusion.network, diffusion.process, diffusion.parametrization, shape, data.classes, conditioned,
    experiment.sampling,
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
  return jax.eval_shape(model.denoiser.init, jax.random.key(0), z, level, jnp.zeros(1, jnp.int32))["params"]


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
def draw(model: Model, params: dict, sampler: Any, labels: Array, pairs: Array, guidance_scale: Array, keys: Array) -> Array:
  """Images [B, H, W, C] in [-1, 1] of labels int [B] (-1: unconditional), over pairs of times [N, 2]; keys [B].

  Compiled once a batch size, step count and kind of sampler: all else is traced.
  """
  apply = lambda *args: model.denoiser.apply({"params": params["denoiser"]}, *args)
  denoise = denoiser(model.process, model.parametrization, apply)
  steered = guided(model.process, denoise, (labels, jnp.full_like(labels, -1)), ClassifierFree(guidance_scale))
  like = jax.ShapeDtypeStruct((len(labels), *model.latent_shape), jnp.float32)
  z = draw_latents(model.process, steered, sampler, like, pairs, keys, model.self_conditioning)
  return codecs.decode(model.autoencoder, params["codec"], z)


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
) -> np.ndarray:
  """Images uint8 [N, H, W, C], one a label (int [N], -1: unconditional); what is left out stands in `model.sampling`.

  Sample i depends on (seed, i) and its label alone, whatever the batch size and the devices.  `size` is (H, W) where
  it is not that of the training data.  `progress` wraps the iterator over batches (tqdm).

  Raises:
    UserError: no labels, a label or a size that is not legal, steps < 1, or a network that says nothing at one of the
      times.
  """
  labels = check_labels(np.asarray(labels, np.int32), model.classes)
  model = model if size is None else resized(model, size)
  steps = model.sampling.steps if steps is None else steps
  scale = model.sampling.guidance_scale if guidance_scale is None else guidance_scale
  pairs = times(model, steps)
  sampler = traced(make_sampler(model.sampling.sampler) if sampler is None else sampler)
  parts = min(len(sharding.choose(devices)), len(labels))
  batch_size = math.ceil(min(batch_size, len(labels)) / parts) * parts  # what is over is drawn and dropped
  mesh = sharding.data_mesh(batch_size, parts)
  whole = (params, sampler, pairs, jnp.float32(scale), jax.random.key(seed))
  params, sampler, pairs, scale, key = sharding.place(mesh, whole)
  images = []
  for start in progress(range(0, len(labels), batch_size)):
    rows = np.arange(start, start + batch_size)
    batch = sharding.place_batch(mesh, (labels[np.minimum(rows, len(labels) - 1)], rows.astype(np.uint32)))
    images.append(to_uint8(draw(model, params, sampler, batch[0], pairs, scale, row_keys(key, batch[1]))))
  return np.concatenate(images)[: len(labels)]


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
