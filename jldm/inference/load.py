"""From a workdir to a model, a static description, and explicit parameters.

  model, params = load("runs/digits")     # params: {"denoiser": …, "codec": …, a trained conditioner's name: …}
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jldm.config.experiment import Experiment
from jldm.core.errors import UserError
from jldm.core.specs import Loaded, Spec, batched
from jldm.models.codecs import codec as codecs
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.ema import reconstruct

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Model:
  """What sampling needs to know besides parameters; static under jit.

  objective: the network with its process, parametrization and conditioners.   data: the arrays of one example.
  tiles: how latents are decoded, Exact(...) or Blended(...) of models.codecs.tiling, or all at once.
  """

  autoencoder: Any  # linen Module with encode and decode
  objective: Any
  data: Spec
  sampling: Any
  tiles: Any = None

  @property
  def latent_shape(self) -> tuple[int, int, int]:
    """[h, w, c] of one sample."""
    height, width, _ = dict(self.data)["image"].shape
    return height // self.autoencoder.factor, width // self.autoencoder.factor, self.autoencoder.latent_channels

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
  return Model(
    experiment.autoencoder.objective.network, experiment.denoiser.objective, experiment.data.specs[0], experiment.sampling
  )


def of_kind(model: Model, kind: type) -> str | None:
  """The name of the model's conditioner of a kind, such as Masked; None if it has none."""
  return next((name for name, conditioner in model.conditioners.items() if isinstance(conditioner, kind)), None)


def codec_shapes(model: Model) -> dict:
  """The codec's tree as shapes, nothing allocated."""
  return codecs.shapes(model.autoencoder)


def denoiser_shapes(model: Model) -> dict:
  """What the denoising stage trains, {"denoiser": …, a conditioner's name: …}, as shapes, nothing allocated."""
  batch = example(model)
  frozen = {"codec": Loaded(model.autoencoder, codec_shapes(model))}
  return jax.eval_shape(lambda batch, frozen: model.objective.init(jax.random.key(0), batch, frozen), batch, frozen)[0]


def example(model: Model, size: int = 1) -> dict:
  """A batch that the denoising stage trains on, as shapes."""
  latent = jax.ShapeDtypeStruct((size, *model.latent_shape), jnp.float32)
  frozen = {"codec": Loaded(model.autoencoder, codec_shapes(model))}
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
  kept = jax.eval_shape(lambda frozen, batch, keys: model.objective.cache(frozen, batch, keys),
                        frozen, batched(model.data, size), keys)
  place = {"row": jax.ShapeDtypeStruct((size,), jnp.int32), "stratum": jax.ShapeDtypeStruct((size,), jnp.float32)}
  return {"mean": latent, "log_variance": latent} | kept | place


def resized(model: Model, size: tuple[int, int]) -> Model:
  """The model for images of (H, W).

  Raises:
    UserError: sides that the autoencoder or the denoiser cannot halve.
  """
  check_size(model, size)
  image = dict(model.data)["image"]
  changed = jax.ShapeDtypeStruct((*size, *image.shape[2:]), image.dtype)
  model = dataclasses.replace(model, data=tuple((name, changed if name == "image" else one) for name, one in model.data))
  denoiser_shapes(model)
  return model


def check_size(model: Model, size: tuple[int, int]) -> None:
  """Raises a UserError for sides (H, W) that the autoencoder cannot halve."""
  factor = model.autoencoder.factor
  if min(size) < 1 or any(side % factor for side in size):
    raise UserError(f"size {size[0]}x{size[1]}; expected sides divisible by the autoencoder's factor {factor}")


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

