"""From an experiment to a model, a static description, and the shapes of its parameters."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jldm.config.experiment import Experiment, Stage
from jldm.core.errors import UserError
from jldm.core.shapes import trace_shapes
from jldm.core.specs import Loaded, Spec, batch_shapes, key_shapes
from jldm.models.autoencoders.posterior import posterior_moments
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import ImageCodec
from jldm.models.codecs.joint import Joint
from jldm.models.conditioners.conditioner import tower_params, with_derived
from jldm.models.conditioners.label import ClassLabel
from jldm.storage import workdir as workdirs

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Model:
  """What sampling needs to know besides parameters; static under jit.

  codec: between data and latents, of models.codecs; Tiled(codec, Exact(32)) takes less memory.
  objective: the network with its process, parametrization and conditioners.   data: the arrays of one
  example.
  """

  codec: Any
  objective: Any
  data: Spec
  sampling: Any

  @property
  def latent_shape(self) -> tuple[int, ...]:
    """[h, w, c] of one sample; UserError for latents in parts, which edits and likelihoods do not have."""
    if self.parts:
      raise UserError(
        f"latents are parts {', '.join(self.parts)}; expected a model with one array, or use generate"
      )
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


class StagePlace(NamedTuple):
  """A stage of an experiment, and the workdir that has its checkpoints; no workdir is enough for shapes."""

  experiment: Experiment
  stage: Stage
  workdir: Path | None = None

  def source(self, name: str, makes: str | None = None) -> "StagePlace":
    """An earlier stage of that name, or the last stage of the workdir at that path, whose result is of a
    kind.

    Raises:
      UserError: neither is there.
    """
    earlier = self.experiment.earlier(self.stage.name)
    if name in [stage.name for stage in earlier]:
      stage = self.experiment.stage(name)
      if makes not in (None, stage.makes):
        raise UserError(
          f"{self.stage.name} relies on {name!r}, which makes a {stage.makes}; expected a {makes}"
        )
      return self._replace(stage=stage)
    if not (Path(name) / "experiment.json").is_file():
      known = ", ".join(stage.name for stage in earlier) or "it has none"
      raise UserError(
        f"{self.stage.name} relies on {name!r}; expected an earlier stage ({known}) or the path of a workdir"
      )
    other = workdirs.read_experiment(Path(name))
    stage = other.last(makes) if makes else other.stages[-1]
    if stage is None:
      raise UserError(
        f"{self.stage.name} relies on workdir {name!r}, which has no {makes}; its stages are "
        f"{', '.join(other.names)}"
      )
    return StagePlace(other, stage, Path(name))

  def needed(self) -> "dict[str, StagePlace]":
    """By role, the stages whose results this one needs."""
    kinds = {"codec": "codec"} | dict.fromkeys(self.towers(), "tower")
    named = [need for need in self.stage.needs if isinstance(need.source, str)]
    return {need.role: self.source(need.source, kinds.get(need.role)) for need in named}

  def towers(self) -> list[str]:
    """The roles of text towers: the names of the conditioners that read through one."""
    if self.stage.makes != "denoiser":
      return []
    return [each.name for each in self.stage.objective.conditioners if each.tower is not None]

  def given(self) -> dict[str, Any]:
    """By role, the codecs that the stage names, which nobody trains."""
    return {need.role: need.source for need in self.stage.needs if not isinstance(need.source, str)}

  def started_from(self) -> "StagePlace | None":
    """The stage whose result this one starts from; None if it starts afresh."""
    return self.source(self.stage.start, self.stage.makes) if self.stage.start else None


def find_stage(workdir: str | Path, name: str | None = None) -> StagePlace:
  """A stage of a workdir, by default the one that draws.

  Raises:
    UserError: not a workdir, or no such stage.
  """
  experiment = workdirs.read_experiment(Path(workdir))
  return StagePlace(experiment, experiment.stage(name) if name else sampling_stage(experiment), Path(workdir))


def sampling_stage(experiment: Experiment, name: str | None = None) -> Stage:
  """The stage that samples are drawn by, by default the last that makes a denoiser; UserError if there is
  none.
  """
  stage = experiment.stage(name) if name else experiment.last("denoiser")
  if experiment.data is None or stage is None:
    raise UserError(
      "the experiment has no data or no denoiser; use its workdir in another: Pretrained('…') among its "
      "stages"
    )
  if stage.makes != "denoiser":
    drawn = [each.name for each in experiment.stages if each.makes == "denoiser"]
    raise UserError(
      f"stage {stage.name!r} makes a {stage.makes} and draws nothing; expected one of "
      f"{', '.join(drawn) or 'none'}"
    )
  return stage


def build_model(experiment: Experiment, stage: str | None = None) -> Model:
  """The model of a stage that draws, by default the last: its objective is that of the stage's result.

  Raises:
    UserError: an autoencoder alone, or networks that do not fit each other or the data.
  """
  at = StagePlace(experiment, sampling_stage(experiment, stage))
  model = stage_model(at)
  model.codec.latent_spec(model.data)
  try:
    return dataclasses.replace(model, objective=result_shapes(at).model)
  except (ValueError, TypeError) as error:
    raise UserError(" ".join(str(error).split())) from error


def stage_model(at: StagePlace) -> Model:
  """A stage as a model: its codec, or the codec that it trains, its objective and the data.

  Raises:
    UserError: a denoiser without a codec.
  """
  stage, experiment = at.stage, at.experiment
  if stage.makes == "codec":
    codec = ImageCodec(stage.objective.network)
  elif "codec" in at.given():
    codec = at.given()["codec"]
  elif "codec" in at.needed():
    codec = ImageCodec(at.needed()["codec"].stage.objective.network)
  else:
    raise UserError(
      f"{stage.name}.needs has no codec; expected one such as (Need('codec', 'autoencoder'),), or, for "
      f"pixels, "
      "(Need('codec', Identity()),)"
    )
  return Model(codec, stage.objective, experiment.data.specs[0], experiment.sampling)


def frozen_shapes(at: StagePlace) -> dict[str, Loaded]:
  """What a stage needs, by role, as shapes; nothing is allocated."""
  given = {role: Loaded(codec, codecs.init_shapes(codec)) for role, codec in at.given().items()}
  return given | {role: result_shapes(source) for role, source in at.needed().items()}


def result_shapes(at: StagePlace) -> Loaded:
  """The result of a stage as shapes; nothing is allocated."""
  objective = at.stage.objective
  if at.stage.makes == "codec":
    codec = ImageCodec(objective.network)
    return Loaded(codec, codecs.init_shapes(codec))
  frozen = frozen_shapes(at)
  return jax.eval_shape(objective.result, *trained_shapes(at, frozen), frozen)


def trained_shapes(at: StagePlace, frozen: dict) -> tuple[Any, Any]:
  """What a stage trains, (params, extra), as shapes."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  objective = at.stage.objective
  return trace_shapes(type(objective).init, objective, key, stage_example(at, frozen), frozen)


def stage_example(at: StagePlace, frozen: dict, size: int = 1) -> dict:
  """A batch that a stage trains on, as shapes: of the codec's latents if it needs one, else of the data."""
  if "codec" in frozen:
    return denoising_batch_shapes(stage_model(at), size, frozen)
  data = at.experiment.data
  return (batch_shapes(data.specs[0], size) if data else {}) | batch_fields(size)


def batch_fields(size: int) -> dict:
  """What every batch has besides its examples, as shapes."""
  return {
    "row": jax.ShapeDtypeStruct((size,), jnp.int32),
    "stratum": jax.ShapeDtypeStruct((size,), jnp.float32),
  }


def conditioner_of_kind(model: Model, kind: type) -> str | None:
  """The name of the model's conditioner of a kind, such as Masked; None if it has none."""
  return next(
    (name for name, conditioner in model.conditioners.items() if isinstance(conditioner, kind)), None
  )


def classes_of(model: Model) -> int:
  """How many classes a model draws; 0 if it has no labels."""
  name = conditioner_of_kind(model, ClassLabel)
  return model.conditioners[name].classes if name else 0


def with_frozen(model: Model, params: dict, frozen: dict[str, Loaded]) -> dict:
  """The parameters that sampling needs: trained ones, the codec's and those of the conditioners' towers."""
  return params | {"codec": frozen["codec"].params} | tower_params(tuple(model.conditioners.values()), frozen)


def codec_shapes(model: Model) -> dict:
  """The codec's parameters as shapes, nothing allocated."""
  return codecs.init_shapes(model.codec)


def frozen_codec(model: Model) -> dict[str, Loaded]:
  """What a stage is given that needs its codec and the towers of its conditioners, as shapes."""
  towers = {name: each.tower for name, each in model.conditioners.items() if each.tower is not None}
  init = lambda network: network.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
  return {"codec": Loaded(model.codec, codec_shapes(model))} | {
    name: Loaded(network, jax.eval_shape(lambda network=network: init(network)))
    for name, network in towers.items()
  }


def denoiser_shapes(model: Model) -> dict:
  """What the denoising stage trains, {"denoiser": …, a conditioner's name: …}, as shapes, nothing
  allocated.
  """
  key, objective = jax.eval_shape(lambda: jax.random.key(0)), model.objective
  batch, frozen = denoising_batch_shapes(model), frozen_codec(model)
  return trace_shapes(type(objective).init, objective, key, batch, frozen)[0]


def denoising_batch_shapes(model: Model, size: int = 1, frozen: dict | None = None) -> dict:
  """A batch that the denoising stage trains on, as shapes; `frozen` is what it needs, by default the
  codec alone.
  """
  model.codec.latent_spec(model.data)
  frozen = frozen_codec(model) if frozen is None else frozen
  example = with_derived(tuple(model.conditioners.values()), model.data)
  arrays = trace_shapes(kept_arrays, model.objective, frozen, batch_shapes(example, size), key_shapes(size))
  return arrays | batch_fields(size)


def kept_arrays(objective: Any, frozen: dict, batch: dict, keys: Array) -> dict:
  """What of a batch of the data is computed once and kept: its latents, and what the conditioners cache."""
  codec = frozen["codec"]
  return posterior_moments(codec.model.encode(codec.params, batch)) | objective.cache(frozen, batch, keys)


def resize_model(model: Model, size: tuple[int, int]) -> Model:
  """The model for images of (H, W).

  Raises:
    UserError: sides that the codec or the denoiser cannot divide, or a network made for one size.
  """
  changed = resize_data(model, size)
  if denoiser_shapes(changed) != denoiser_shapes(model):
    height, width = size
    network = type(model.objective.network).__name__
    raise UserError(
      f"size {height}x{width}: {network} has other parameters for it; expected the size of the training data"
    )
  return changed


def resize_data(model: Model, size: tuple[int, int]) -> Model:
  """The model for images of (H, W); UserError for sides that the codec cannot divide."""
  resize = lambda one: (
    jax.ShapeDtypeStruct((*size, *one.shape[2:]), one.dtype) if len(one.shape) == 3 else one
  )
  model = dataclasses.replace(model, data=tuple((name, resize(one)) for name, one in model.data))
  model.codec.latent_spec(model.data)
  return model
