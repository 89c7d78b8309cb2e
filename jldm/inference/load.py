"""From a workdir to a model, a static description, and explicit parameters.

  model, params = load("runs/digits")     # params: {"denoiser": …, "codec": …, a trained conditioner's name: …}
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jldm.config.experiment import Experiment, Stage
from jldm.core.errors import UserError
from jldm.core.specs import Loaded, Spec, batched, keys_like
from jldm.models.autoencoders.posterior import moments
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import ImageCodec
from jldm.models.codecs.joint import Joint
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.ema import reconstruct

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Model:
  """What sampling needs to know besides parameters; static under jit.

  codec: between data and latents, of models.codecs; Tiled(codec, Exact(32)) takes less memory.
  objective: the network with its process, parametrization and conditioners.   data: the arrays of one example.
  """

  codec: Any
  objective: Any
  data: Spec
  sampling: Any

  @property
  def latent_shape(self) -> tuple[int, ...]:
    """[h, w, c] of one sample; UserError for latents in parts, which edits and likelihoods do not have."""
    if self.parts:
      raise UserError(f"latents are parts {', '.join(self.parts)}; expected a model with one array, or use generate")
    return self.codec.latent_spec(self.data).shape

  @property
  def parts(self) -> dict[str, Any]:
    """The codecs of latents in parts, by name; none of latents that are one array."""
    return dict(self.codec.parts) if isinstance(self.codec, Joint) else {}

  def latents(self, size: int) -> Any:
    """The latents of `size` examples as shapes, one array [size, ...] or a dict of them by part."""
    batch = lambda one: jax.ShapeDtypeStruct((size, *one.shape), one.dtype)
    return jax.tree.map(batch, self.codec.latent_spec(self.data))

  @property
  def process(self) -> Any:
    return self.objective.process

  @property
  def conditioners(self) -> dict[str, Any]:
    """By name."""
    return {conditioner.name: conditioner for conditioner in self.objective.conditioners}


def of(experiment: Experiment) -> Model:
  """The model of an experiment; UserError where it is an autoencoder alone."""
  if experiment.data is None or experiment.denoiser is None:
    raise UserError("the experiment has no data or no denoiser; use its workdir in another: autoencoder=Pretrained('…')")
  return Model(codec_of(experiment), experiment.denoiser.objective, experiment.data.specs[0], experiment.sampling)


def codec_of(experiment: Experiment) -> Any:
  """The codec that an experiment trains, imports or names."""
  found = experiment.autoencoder
  return ImageCodec(found.objective.network) if isinstance(found, Stage) else found


def of_kind(model: Model, kind: type) -> str | None:
  """The name of the model's conditioner of a kind, such as Masked; None if it has none."""
  return next((name for name, conditioner in model.conditioners.items() if isinstance(conditioner, kind)), None)


def codec_shapes(model: Model) -> dict:
  """The codec's tree as shapes, nothing allocated."""
  return codecs.shapes(model.codec)


def frozen_shapes(model: Model) -> dict:
  """What the denoiser's steps are given beside its state, as shapes."""
  return {"codec": Loaded(model.codec, codec_shapes(model))}


def denoiser_shapes(model: Model) -> dict:
  """What the denoising stage trains, {"denoiser": …, a conditioner's name: …}, as shapes, nothing allocated."""
  init = lambda batch, frozen: model.objective.init(jax.random.key(0), batch, frozen)
  return jax.eval_shape(init, example(model), frozen_shapes(model))[0]


def example(model: Model, size: int = 1) -> dict:
  """A batch that the denoising stage trains on, as shapes."""

  def kept(frozen: dict, batch: dict, keys: Array) -> dict:
    codec = frozen["codec"]
    return moments(codec.model.encode(codec.params, batch)) | model.objective.cache(frozen, batch, keys)

  model.codec.latent_spec(model.data)
  place = {"row": jax.ShapeDtypeStruct((size,), jnp.int32), "stratum": jax.ShapeDtypeStruct((size,), jnp.float32)}
  return jax.eval_shape(kept, frozen_shapes(model), batched(model.data, size), keys_like(size)) | place


def resized(model: Model, size: tuple[int, int]) -> Model:
  """The model for images of (H, W).

  Raises:
    UserError: sides that the codec or the denoiser cannot divide.
  """
  model = of_size(model, size)
  denoiser_shapes(model)
  return model


def of_size(model: Model, size: tuple[int, int]) -> Model:
  """The model for images of (H, W); UserError for sides that the codec cannot divide."""
  resize = lambda one: jax.ShapeDtypeStruct((*size, *one.shape[2:]), one.dtype) if len(one.shape) == 3 else one
  model = dataclasses.replace(model, data=tuple((name, resize(one)) for name, one in model.data))
  model.codec.latent_spec(model.data)
  return model


def load(workdir: str | Path, sigma_rel: float | None = None, best: bool = False) -> tuple[Model, dict]:
  """The model of a workdir and its averaged parameters, from the newest good checkpoints.

  `sigma_rel` makes the denoiser's average anew with another length, as a share of the training: EDM2 (2312.02696).
  `best`: the denoiser that the evaluations while training liked best, in place of the newest.

  Raises:
    UserError: not a workdir, a stage has no checkpoint yet, both of them, or one of them where nothing was kept for it.
  """
  if best and sigma_rel is not None:
    raise UserError(f"the best denoiser and sigma_rel={sigma_rel}; expected one of them: averages are made up to the newest step")
  workdir = Path(workdir)
  model = of(workdirs.read(workdir))
  (_, codec), (_, trained) = (restored(model, workdir, stage, best) for stage in workdirs.STAGES)
  if sigma_rel is not None:
    trained = average(workdir, sigma_rel, trained)
  return model, trained | {"codec": codec}


def restored(model: Model, workdir: Path, stage: str, best: bool = False) -> tuple[int, dict]:
  """The step of a stage and what samples need of it, the codec or the averages of what the denoising stage trains.

  Raises:
    UserError: there is no checkpoint yet, or no best one.
  """
  if stage == "autoencoder" and not model.codec.trained:
    return 0, model.codec.init(jax.random.key(0))
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
  """The autoencoder's network of a workdir and its codec's parameters, trained or imported.

  Raises:
    UserError: not a workdir, it has no autoencoder, or that is not finished.
  """
  found = workdirs.read(Path(workdir)).autoencoder
  if not isinstance(found, Stage):
    raise UserError(f"workdir {str(workdir)!r} has {type(found).__name__} in place of an autoencoder; choose another")
  network = found.objective.network
  with Checkpoints(workdirs.checkpoints(Path(workdir), "autoencoder"), read_only=True) as saved:
    step = saved.latest()
    if step is None or "codec" not in saved.items(step):
      raise UserError(f"workdir {str(workdir)!r} has no finished autoencoder; run train.py on it first")
    return network, saved.restore(step, {"codec": codecs.shapes(ImageCodec(network))})["codec"]


def average(workdir: Path, sigma_rel: float, like: Any) -> Any:
  """The denoiser's parameters averaged with the profile of `sigma_rel` up to the newest snapshot."""
  with Checkpoints(workdirs.averages(workdir, "denoiser"), read_only=True) as kept:
    if not kept.steps():
      raise UserError(f"workdir {str(workdir)!r} kept no averages; train with --set 'denoiser.ema=Power((0.05, 0.1))'")
    restore = lambda step, item: lambda: kept.restore(step, {item: like})[item]
    snapshots = [((step, float(item)), restore(step, item)) for step in kept.steps() for item in kept.items(step)]
    return reconstruct(sigma_rel, kept.steps()[-1], snapshots)

