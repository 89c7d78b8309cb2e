"""From a workdir to a model, a static description, and explicit parameters.

model, params = load("runs/digits")     # params: {"denoiser": …, "codec": …, a trained conditioner's name: …}
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jldm.core.errors import UserError
from jldm.core.specs import Loaded
from jldm.inference.model import (
  Model,
  StagePlace,
  build_model,
  frozen_shapes,
  result_shapes,
  sampling_stage,
  trained_shapes,
  with_frozen,
)
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import ImageCodec
from jldm.models.conditioners.text import Text
from jldm.models.towers.tokenizers import Tokenizer
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.storage.finished import is_finished
from jldm.train.ema import reconstruct
from jldm.train.state import averaged_items

TOKENIZER = "tokenizer"  # the folder of a workdir that an imported text tower has its tokenizer in


def load(
  workdir: str | Path, sigma_rel: float | None = None, best: bool = False, stage: str | None = None
) -> tuple[Model, dict]:
  """The model of a workdir and its averaged parameters, from the newest good checkpoints.

  `sigma_rel` makes the denoiser's average anew with another length, as a share of the training:
  EDM2 (2312.02696). `best`: the denoiser that the evaluations while training liked best, in place
  of the newest. `stage`: the stage that draws, by default the last that makes a denoiser.

  Raises:
    UserError: not a workdir, a stage has no checkpoint yet, both of them, or one of them where
      nothing was kept for it.
  """
  _, model, params = load_with_origin(workdir, sigma_rel, best, stage)
  return model, params


class Origin(NamedTuple):
  """Where a denoiser is from."""

  stage: str
  step: int


def load_with_origin(
  workdir: str | Path, sigma_rel: float | None = None, best: bool = False, stage: str | None = None
) -> tuple[Origin, Model, dict]:
  """As `load`, after the stage and the step that the denoiser is of."""
  if best and sigma_rel is not None:
    raise UserError(
      f"the best denoiser and sigma_rel={sigma_rel}; expected one of them: averages are made up to the "
      f"newest step"
    )
  experiment = workdirs.read_experiment(Path(workdir))
  model = build_model(experiment, stage)
  at = StagePlace(experiment, sampling_stage(experiment, stage), Path(workdir))
  frozen = load_needed(at)
  step, loaded = restore_result(at, frozen, best, sigma_rel)
  return Origin(at.stage.name, step), model, with_frozen(model, loaded.params, frozen)


def load_needed(at: StagePlace) -> dict[str, Loaded]:
  """What a stage needs, by role, from the last checkpoints of other stages.

  Raises:
    UserError: one of them is not finished.
  """
  given = {role: Loaded(codec, codec.init(jax.random.key(0))) for role, codec in at.given().items()}
  return given | {role: load_finished(source) for role, source in at.needed().items()}


def load_finished(at: StagePlace) -> Loaded:
  """The result of a stage; UserError if the stage is not finished."""
  check_finished(at)
  return restore_result(at)[1]


def check_finished(at: StagePlace) -> None:
  """Raises a UserError unless the last step of a stage is committed."""
  name = at.stage.name
  with Checkpoints(workdirs.checkpoints_folder(at.workdir, name), read_only=True) as saved:
    if not is_finished(saved, at.stage):
      raise UserError(
        f"workdir {str(at.workdir)!r} has no trained {name} yet, or one that is not finished; train it "
        f"first: "
        f"--stage {name}"
      )


def restore_result(
  at: StagePlace, frozen: dict | None = None, best: bool = False, sigma_rel: float | None = None
) -> tuple[int, Loaded]:
  """The newest step of a stage and its result, by averaged parameters; `frozen` is what it needs, by
  default read too.

  Raises:
    UserError: there is no checkpoint yet, or no best one.
  """
  name, workdir = at.stage.name, at.workdir
  codec = at.stage.makes == "codec"
  items = (
    {"codec": result_shapes(at).params} if codec else averaged_items(*trained_shapes(at, frozen_shapes(at)))
  )
  with Checkpoints(
    (workdirs.best_folder if best else workdirs.checkpoints_folder)(workdir, name), read_only=True
  ) as saved:
    step = saved.latest()
    if step is None or not set(items) <= set(saved.items(step)):
      if best:
        raise UserError(
          f"workdir {str(workdir)!r} keeps no best {name}; train with --set evaluation.every_steps=1000"
        )
      raise UserError(f"workdir {str(workdir)!r} has no trained {name} yet; run train.py on it first")
    items_saved = saved.restore(step, items)
  if codec:
    return step, Loaded(ImageCodec(at.stage.objective.network), items_saved["codec"])
  params = (
    items_saved["ema"] if sigma_rel is None else load_average(workdir, sigma_rel, items_saved["ema"], name)
  )
  return step, at.stage.objective.result(
    params, items_saved.get("extra", {}), load_needed(at) if frozen is None else frozen
  )


def load_codec(workdir: str | Path) -> tuple[Any, dict]:
  """The autoencoder's network of a workdir and its codec, trained or imported: of its last stage that makes
  one.

  Raises:
    UserError: not a workdir, it has no autoencoder, or that is not finished.
  """
  experiment = workdirs.read_experiment(Path(workdir))
  stage = experiment.last("codec")
  if stage is None:
    raise UserError(
      f"workdir {str(workdir)!r} has no autoencoder; its stages are {', '.join(experiment.names)}"
    )
  network = stage.objective.network
  with Checkpoints(workdirs.checkpoints_folder(Path(workdir), stage.name), read_only=True) as saved:
    step = saved.latest()
    if step is None or "codec" not in saved.items(step):
      raise UserError(f"workdir {str(workdir)!r} has no finished {stage.name}; run train.py on it first")
    return network, saved.restore(step, {"codec": codecs.init_shapes(ImageCodec(network))})["codec"]


def text_conditioner(workdir: str | Path, **fields: Any) -> Text:
  """The conditioner of the text tower that `jldm convert` made a workdir of, or of a whole pipeline's;
  `fields` are those of Text.

  Raises:
    UserError: not a workdir, or one without a text tower.
  """
  experiment = workdirs.read_experiment(Path(workdir))
  stage, denoiser = experiment.last("tower"), experiment.last("denoiser")
  if stage is None:
    raise UserError(
      f"workdir {str(workdir)!r} has no text tower; make one: jldm convert FOLDER {workdir} --to jldm"
    )
  conditioners = () if denoiser is None else denoiser.objective.conditioners
  if texts := [each for each in conditioners if isinstance(each, Text)]:
    return dataclasses.replace(texts[0], **fields)
  defaults = {"tower": stage.objective.network, "tokenizer": Tokenizer(str(Path(workdir) / TOKENIZER))}
  return Text(**(defaults | fields))


def load_average(workdir: Path, sigma_rel: float, like: Any, stage: str) -> Any:
  """A stage's parameters averaged with the profile of `sigma_rel` up to the newest snapshot."""
  with Checkpoints(workdirs.averages_folder(workdir, stage), read_only=True) as kept:
    if not kept.steps():
      raise UserError(
        f"workdir {str(workdir)!r} kept no averages; train with --set '{stage}.ema=Power((0.05, 0.1))'"
      )
    restore = lambda step, item: lambda: kept.restore(step, {item: like})[item]
    snapshots = [
      ((step, float(item)), restore(step, item)) for step in kept.steps() for item in kept.items(step)
    ]
    return reconstruct(sigma_rel, kept.steps()[-1], snapshots)
