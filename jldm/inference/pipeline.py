"""From a workdir to pictures, over explicit parameters.

  model, params = pipeline.load("runs/digits")
  images = pipeline.generate(model, params, labels=[3] * 8, seed=0, guidance_scale=2.0)  # uint8 [8, H, W, C]
  bits = pipeline.bits_per_dim(model, params, images)  # float [8], of latents
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.config.experiment import Experiment
from jldm.config.presets import make_sampler
from jldm.core.errors import UserError
from jldm.core.keys import normal, row_keys, split_each
from jldm.core.trees import traced
from jldm.diffusion import likelihood
from jldm.diffusion.process import half_log_snr
from jldm.diffusion.target import denoiser, refuse_singular
from jldm.distributed import sharding
from jldm.media.images import to_uint8
from jldm.models.codecs import codec as codecs
from jldm.samplers.grid import GRIDS, log_snr_uniform
from jldm.samplers.guidance import ClassifierFree, guided
from jldm.samplers.sample import Denoise, draw as draw_latents, trajectory as draw_with_estimates
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.ema import reconstruct

Array = jax.Array


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
  tiles: Any = None  # how latents are decoded: Exact(...) or Blended(...) of models.tiling, or all at once


def of(experiment: Experiment) -> Model:
  """The model of an experiment; UserError where it is an autoencoder alone."""
  if experiment.data is None or experiment.denoiser is None:
    raise UserError("the experiment has no data or no denoiser; use its workdir in another: autoencoder=Pretrained('…')")
  autoencoder, diffusion, data = experiment.autoencoder.objective.network, experiment.denoiser.objective, experiment.data
  shape = (data.height // autoencoder.factor, data.width // autoencoder.factor, autoencoder.latent_channels)
  conditioned = getattr(diffusion, "self_conditioning", 0) > 0
  return Model(
    autoencoder, diffusion.network, diffusion.process, diffusion.parametrization, shape, data.classes, conditioned,
    experiment.sampling, getattr(diffusion, "condition", None),
  )


def codec_shapes(model: Model) -> dict:
  """The codec's tree as shapes, nothing allocated."""
  return codecs.shapes(model.autoencoder)


def denoiser_shapes(model: Model) -> Any:
  """The denoiser's parameters as shapes, nothing allocated."""
  z, level = jnp.zeros((1, *model.latent_shape)), jnp.zeros(1)
  concat = {"concat": jnp.zeros((1, *concat_shape(model)))} if model.condition else {}
  inputs = {"label": jnp.zeros(1, jnp.int32)} | concat
  return jax.eval_shape(model.denoiser.init, jax.random.key(0), z, level, inputs)["params"]


def concat_shape(model: Model) -> tuple[int, int, int]:
  """Of a condition beside z, one sample's."""
  *grid, channels = model.latent_shape
  return *grid, model.condition.channels(channels)


def load(workdir: str | Path, sigma_rel: float | None = None, best: bool = False) -> tuple[Model, dict]:
  """The model of a workdir and its averaged parameters {"denoiser", "codec"}, from the newest good checkpoints.

  `sigma_rel` makes the denoiser's average anew with another length, as a share of the training: EDM2 (2312.02696).
  `best`: the denoiser that the evaluations while training liked best, in place of the newest.

  Raises:
    UserError: not a workdir, a stage has no checkpoint yet, both of them, or one of them where nothing was kept for it.
  """
  if best and sigma_rel is not None:
    raise UserError(f"the best denoiser and sigma_rel={sigma_rel}; expected one of them: averages are made up to the newest step")
  workdir = Path(workdir)
  model = of(workdirs.read(workdir))
  (_, codec), (_, denoiser) = (restored(model, workdir, stage, best) for stage in workdirs.STAGES)
  if sigma_rel is not None:
    denoiser = average(workdir, sigma_rel, denoiser)
  return model, {"denoiser": denoiser, "codec": codec}


def restored(model: Model, workdir: Path, stage: str, best: bool = False) -> tuple[int, dict]:
  """The step of a stage and what samples need of it, the codec or the denoiser's averaged parameters.

  Raises:
    UserError: there is no checkpoint yet, or no best one.
  """
  item, shapes = {"autoencoder": ("codec", codec_shapes), "denoiser": ("ema", denoiser_shapes)}[stage]
  best = best and stage == "denoiser"
  with Checkpoints((workdirs.best if best else workdirs.checkpoints)(workdir, stage), read_only=True) as saved:
    step = saved.latest()
    if step is None or item not in saved.items(step):
      if best:
        raise UserError(f"workdir {str(workdir)!r} keeps no best denoiser; train with --set evaluation.every_steps=1000")
      raise UserError(f"workdir {str(workdir)!r} has no trained {stage} yet; run train.py on it first")
    return step, saved.restore(step, {item: shapes(model)})[item]


def load_codec(workdir: str | Path) -> tuple[Any, dict]:
  """The autoencoder's network of a workdir and its codec, trained or imported.

  Raises:
    UserError: not a workdir, or its autoencoder is not finished.
  """
  network = workdirs.read(Path(workdir)).autoencoder.objective.network
  with Checkpoints(workdirs.checkpoints(Path(workdir), "autoencoder"), read_only=True) as saved:
    step = saved.latest()
    if step is None or "codec" not in saved.items(step):
      raise UserError(f"workdir {str(workdir)!r} has no finished autoencoder; run train.py on it first")
    return network, saved.restore(step, {"codec": codecs.shapes(network)})["codec"]


def average(workdir: Path, sigma_rel: float, like: Any) -> Any:
  """The denoiser's parameters averaged with the profile of `sigma_rel` up to the newest snapshot."""
  with Checkpoints(workdirs.averages(workdir, "denoiser"), read_only=True) as kept:
    if not kept.steps():
      raise UserError(f"workdir {str(workdir)!r} kept no averages; train with --set 'denoiser.ema=Power((0.05, 0.1))'")
    restore = lambda step, item: lambda: kept.restore(step, {item: like})[item]
    snapshots = [((step, float(item)), restore(step, item)) for step in kept.steps() for item in kept.items(step)]
    return reconstruct(sigma_rel, kept.steps()[-1], snapshots)


def bound(model: Model, params: dict) -> Any:
  """The network as denoise(z, t, told), where told is {"labels": int [B]} and, of a model with a condition, "concat"."""

  def apply(z: Array, level: Array, told: dict, *estimate: Array) -> Any:
    inputs = dict(told)
    inputs["label"] = inputs.pop("labels")
    return model.denoiser.apply({"params": params["denoiser"]}, z, level, inputs, *estimate)

  return denoiser(model.process, model.parametrization, apply)


def steered(
  model: Model, params: dict, labels: Array, rule: Any, negative: Array = -1, concat: Array | None = None,
  condition_scale: Array | None = None,
) -> Denoise:
  """The denoiser guided by a rule from the label `negative` to labels [B], beside `concat` [B, h, w, Cc] in both.

  `condition_scale` c guides by that too, where the rule is ClassifierFree(s): s e(label, concat) + (c - s) e(negative,
  concat) + (1 - c) e(negative, 0), Brooks et al. 2022 (2211.09800), eq. 3.
  """
  beside = {} if concat is None else {"concat": concat}
  told = [{"labels": some} | beside for some in (labels, jnp.full_like(labels, negative))]
  if condition_scale is not None:
    told.append(told[1] | {"concat": jnp.zeros_like(concat)})
    rule = ClassifierFree(jnp.stack([rule.scale, condition_scale - rule.scale])[:, None])
  return guided(model.process, bound(model, params), told, rule)


@functools.partial(jax.jit, static_argnums=0, static_argnames="shown")
def draw(
  model: Model, params: dict, sampler: Any, labels: Array, pairs: Array, rule: Any, negative: Array, keys: Array,
  concat: Array | None = None, condition_scale: Array | None = None, shown: tuple[int, ...] = (),
) -> tuple[Array, Array]:
  """Images [B, H, W, C] in [-1, 1] of labels int [B] (-1: unconditional), over pairs of times [N, 2]; keys [B].

  `rule` guides away from the label `negative`.  `concat` [B, h, w, Cc] is the condition of a model that has one.  Also
  returns what the steps `shown` took the images for, [B, K, H, W, C].  Compiled once a batch size, step count and kind of
  sampler and rule: all else is traced.
  """
  denoise = steered(model, params, labels, rule, negative, concat, condition_scale)
  like = jax.ShapeDtypeStruct((len(labels), *model.latent_shape), jnp.float32)
  decode = lambda z: codecs.decode(model.autoencoder, params["codec"], z, model.tiles)
  walk = model.process, denoise, sampler, like, pairs, keys, model.self_conditioning
  if not shown:
    images = decode(draw_latents(*walk))
    return images, images[:, None][:, :0]
  z, x0 = draw_with_estimates(*walk)
  return decode(z), jnp.moveaxis(jax.lax.map(decode, x0[jnp.array(shown)]), 0, 1)


def generate(model: Model, params: dict, labels: Any, seed: int = 0, **options: Any) -> np.ndarray:
  """Images uint8 [N, H, W, C], one a label (int [N], -1: unconditional); `options` are those of `trajectory` but `previews`.

  Sample i depends on (seed, i) and its label alone, whatever the batch size and the devices.

  Raises:
    UserError: as `trajectory`.
  """
  return trajectory(model, params, labels, seed, previews=0, **options)[0]


def trajectory(
  model: Model,
  params: dict,
  labels: Any,
  seed: int = 0,
  *,
  previews: int = 8,
  rows: Any = None,
  sampler: Any = None,
  steps: Any = None,
  grid: str | None = None,
  guidance_scale: float | None = None,
  guidance: Any = None,
  negative_label: int = -1,
  size: tuple[int, int] | None = None,
  batch_size: int = 250,
  devices: sharding.Devices = None,
  progress: Any = iter,
  concat: Any = None,
  condition_scale: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [N, H, W, C] of labels int [N], and what `previews` of the steps took them for, [N, K, H, W, C]: one pass.

  Estimates of all steps are kept on the way: for a few pictures.  What is left out stands in `model.sampling`.

  rows: the numbers i [N] of the samples, by default 0 to N - 1.
  sampler: an object of jldm.samplers, or a name of jldm.config.presets.
  steps: how many, on `grid`, a name of jldm.samplers.grid.GRIDS; or pairs (t, s) [N, 2] themselves.
  guidance: a rule of jldm.samplers.guidance in place of ClassifierFree(guidance_scale), away from `negative_label`; its
    numbers are one for all samples.
  size: (H, W) where it is not that of the training data.   progress: wraps the iterator over batches (tqdm).
  concat: what `condition` made of pictures, [N, h, w, Cc], of a model that has a condition; `condition_scale` guides by it.

  Raises:
    UserError: no labels, a label or a size that is not legal, steps < 1, a grid that the process cannot have, both a rule
      and a scale, a network that says nothing at one of the times, or a condition where the model has none, or none where it
      has one.
  """
  labels = check_labels(np.asarray(labels, np.int32), model.classes)
  check_labels(np.array([negative_label]), model.classes)
  if guidance is not None and guidance_scale is not None:
    raise UserError(f"guidance={guidance} and guidance_scale={guidance_scale}; expected one of them, a rule has its own scale")
  if guidance is not None and condition_scale is not None:
    raise UserError(f"guidance={guidance} and condition_scale={condition_scale}; expected one of them")
  model = model if size is None else resized(model, size)
  check_concat(model, concat, len(labels), condition_scale)
  scale = model.sampling.guidance_scale if guidance_scale is None else guidance_scale
  rule = traced(ClassifierFree(scale) if guidance is None else guidance)
  pairs = times(model, model.sampling.steps if steps is None else steps, grid)
  shown = tuple(int(step) for step in np.unique(np.linspace(0, len(pairs) - 1, previews).round()))
  sampler = model.sampling.sampler if sampler is None else sampler
  sampler = traced(make_sampler(sampler) if isinstance(sampler, str) else sampler)
  numbers = np.arange(len(labels)) if rows is None else np.asarray(rows)
  mesh, batch_size = sharding.mesh_of_rows(len(labels), batch_size, devices)
  whole = (sampler, pairs, rule, jnp.int32(negative_label), traced(condition_scale), jax.random.key(seed))
  sampler, pairs, rule, negative, condition_scale, key = sharding.place(mesh, whole)
  params, drawn = sharding.spread(mesh, params), sharding.on(mesh, draw)
  found = []
  for start in progress(range(0, len(labels), batch_size)):
    read = np.minimum(np.arange(start, start + batch_size), len(labels) - 1)
    told = None if concat is None else np.asarray(concat, np.float32)[read]
    some, places, told = sharding.place_batch(mesh, (labels[read], numbers[read].astype(np.uint32), told))
    keys = row_keys(key, places)
    both = drawn(model, params, sampler, some, pairs, rule, negative, keys, told, condition_scale, shown=shown)
    found.append([to_uint8(part) for part in sharding.fetch(both)])
  return tuple(np.concatenate(part)[: len(labels)] for part in zip(*found))


@functools.partial(jax.jit, static_argnums=(0, 6))
def log_density(model: Model, params: dict, images: Array, labels: Array, times: Array, keys: Array, probes: int) -> Array:
  """log p [B] of standardised latents of images [B, H, W, C], drawn and noised to times[0]; keys [B]."""
  key_latent, key_noise, key_probes = split_each(keys, 3)
  codec = params["codec"]
  posterior = codecs.encode(model.autoencoder, codec, images)
  latents = codecs.draw(codecs.Statistics(codec["mean"], codec["std"]), posterior, key_latent)
  z = model.process.alpha(times[0]) * latents + model.process.sigma(times[0]) * normal(key_noise, latents)
  denoise = bound(model, params)
  divergence = likelihood.hutchinson(key_probes, z, probes)
  found = likelihood.log_density(model.process, lambda z, t: denoise(z, t, {"labels": labels}), z, times, divergence)
  return found + z[0].size * jnp.log(model.process.alpha(times[0]))  # of z / alpha, whatever the process


def bits_per_dim(
  model: Model, params: dict, images: Any, labels: Any = None, seed: int = 0, steps: int = 50, probes: int = 1,
  batch_size: int = 64,
) -> np.ndarray:
  """Bits a value [N] by the probability flow: of latents, not of pixels, so that they compare denoisers over one codec.

  images uint8 [N, H, W, C] or float in [-1, 1]; labels int [N], by default none.  The latents are standardised and have
  noise of log SNR 10 on them; raw ones have the mean of log2 std more (likelihood.unstandardised).  Four evaluations and
  their derivatives in each of `steps`, which are even in log SNR.  What is said of image i depends on (seed, i).

  Raises:
    UserError: no images, images of another shape, not as many labels, a label that is not legal, steps or probes < 1, or a
      model with a condition.
  """
  images, (h, w, _), factor = np.asarray(images), model.latent_shape, model.autoencoder.factor
  if images.shape[1:] != (expected := (h * factor, w * factor, model.autoencoder.channels)):
    raise UserError(f"images of shape {images.shape}; expected [N, {', '.join(map(str, expected))}], as the model was trained on")
  check_concat(model, None, len(images))
  labels = check_labels(np.full(len(images), -1, np.int32) if labels is None else np.asarray(labels, np.int32), model.classes)
  if len(labels) != len(images) or probes < 1:
    raise UserError(f"{len(labels)} labels of {len(images)} images, probes={probes}; expected one each, and at least one probe")
  lowest = 2 * float(half_log_snr(model.process, jnp.float32(1)))
  path = log_snr_uniform(model.process, steps, max(lowest, -10.0), 10.0)[::-1]
  refuse_singular(model.process, model.parametrization, np.asarray(path))
  found, key, batch_size = [], jax.random.key(seed), min(batch_size, len(images))
  for start in range(0, len(images), batch_size):
    rows = np.arange(start, start + batch_size)
    here, keys = np.minimum(rows, len(images) - 1), row_keys(key, rows.astype(np.uint32))
    found.append(np.asarray(log_density(model, params, images[here], labels[here], path, keys, probes)))
  return np.asarray(likelihood.bits_per_dim(np.concatenate(found)[: len(images)], math.prod(model.latent_shape)))


def condition(model: Model, params: dict, images: Any, known: Any = None, batch_size: int = 250) -> np.ndarray:
  """What a model with a condition is told of pictures: float32 [N, h, w, Cc].

  images uint8, or float in [-1, 1], [N, H, W, C]: those of which parts are known, where `known` [N, H, W, 1] is 1, or the
  source pictures of a `Paired` model.

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
  latents = functools.partial(encode, model, params["codec"])
  some = [slice(start, start + batch_size) for start in range(0, len(images), batch_size)]
  if not masked:
    return np.concatenate([latents(images[s]) for s in some])
  return np.concatenate([model.condition.beside(latents, codecs.pixels(images[s]), known[s]) for s in some])


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


def times(model: Model, steps: Any, grid: str | None = None) -> Array:
  """The pairs (t, s) [N, 2] that are walked: `steps` many on a grid of GRIDS, or `steps` itself where it is pairs.

  Raises:
    UserError: steps < 1, another grid, one that the process cannot have, or a network that says nothing at one of them.
  """
  name = model.sampling.grid if grid is None else grid
  if name not in GRIDS:
    raise UserError(f"grid={name!r}; expected one of {sorted(GRIDS)}")
  given = np.ndim(steps) > 0
  if given and (grid is not None or np.ndim(steps) != 2 or np.shape(steps)[1] != 2):
    raise UserError(f"steps of shape {np.shape(steps)}, grid={grid!r}; expected a number of steps, or pairs [N, 2] and no grid")
  pairs = jnp.asarray(steps if given else GRIDS[name](model.process, steps), jnp.float32)
  evaluated = np.asarray(pairs).ravel()  # at s too by some samplers, but never of clean data
  clean = np.asarray(model.process.sigma(jnp.asarray(evaluated)) == 0) & (np.arange(len(evaluated)) % 2 == 1)
  refuse_singular(model.process, model.parametrization, evaluated[~clean])
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
