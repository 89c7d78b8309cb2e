"""An experiment: frozen dataclasses of real objects.

`registry` has the table of legal classes, `serialize` the JSON form, and `override` implements `--set`.
"""

import dataclasses
from typing import Any, ClassVar

from jldm.config.ranges import check_ranges
from jldm.core.errors import UserError
from jldm.models.codecs.codec import Codec
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.grid import Grid
from jldm.samplers.guidance import ClassifierFree
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW

# Names that no stage can have: other fields of an experiment, folders of a workdir, and "all" of --stage.
RESERVED_NAMES = (
  "data",
  "stages",
  "sampling",
  "evaluation",
  "seed",
  "latents",
  "conditions",
  "images",
  "samples",
  "tb",
  "wandb",
  "lock",
  "all",
)


@dataclasses.dataclass(frozen=True)
class Need:
  """A network that a stage uses and does not train: `frozen[role]` of its objective.

  `source` is one of

  - the name of an earlier stage,
  - the path of a workdir, whose last stage is used (its last codec if the role is "codec", its last tower
    if a conditioner of this name has one),
  - a codec without parameters: with Need("codec", Identity()) a denoiser works on pixels.
  """

  role: str
  source: str | Codec

  def __post_init__(self):
    if not isinstance(self.role, str) or not self.role:
      raise UserError(f"role={self.role!r} of Need; expected text, as in Need('codec', 'autoencoder')")
    if not self.source or (
      not isinstance(self.source, str) and (not isinstance(self.source, Codec) or self.source.trained)
    ):
      raise UserError(
        f"source={self.source!r} of Need; expected text, as in Need('codec', 'autoencoder'), or a codec that "
        "is not trained, such as Identity()"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One training: an objective, an optimizer and a number of steps; intervals are in steps.

  needs: results of other stages.  A stage that needs a "codec" trains on the codec's latents, any
    other on the data.
  start: an earlier stage, or a workdir, whose result this stage starts from.  A codec keeps its mean
    and std unless `remeasure`; with steps=0 its parameters are unchanged.  A denoiser of another number
    of classes gets a new label table.
  patience: the number of held-out measurements without an improvement after which the stage ends; 0 is
    never.
  keep: the number of last checkpoints that stay; those of multiples of `keep_every_steps` stay too.
  devices: the number of devices if the caller gives none; 0 is all (on a CPU, the largest number that
    divides the batch).
  """

  name: str
  objective: Any
  needs: tuple[Need, ...] = ()
  start: str = ""
  remeasure: bool = False
  optimizer: Any = AdamW()
  steps: int = 10_000
  batch_size: int = 128
  accumulate: int = 1  # microbatches per step
  ema: Any = Decay(0.999)
  devices: int = 0
  log_every_steps: int = 50
  save_every_steps: int = 1000
  keep: int = 2
  keep_every_steps: int = 0  # 0: none beyond the last
  patience: int = 0
  picture_every_steps: int = 1000
  snapshot_every_steps: int = 1000  # of the averages, if ema is Power(...)

  @property
  def makes(self) -> str:
    """The kind of the result, such as "codec" or "denoiser"."""
    try:
      return self.objective.makes
    except AttributeError as error:
      kind = type(self.objective).__name__
      raise UserError(
        f"{self.name}.objective is a {kind}; expected an objective such as Diffusion(...)"
      ) from error


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """The autoencoder of another workdir, unchanged: a Stage with steps=0 that starts there.

  `batch_size` images are encoded at once.  With `remeasure` the mean and std of its latents are those
  of this experiment's data.
  """

  path: str
  name: str = "autoencoder"
  batch_size: int = 32
  remeasure: bool = False
  makes: ClassVar[str] = "codec"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How samples are drawn.

  sampler: an object of jldm.samplers (docs/samplers.md compares them); None is the default of an edit.
  steps: the number of steps on `grid`; the grid Pairs(...) ignores it.
  guidance: a rule of jldm.samplers.guidance, or PerConditioner(names, scales).
  transforms: wrappers of the denoiser, applied in this order, such as Threshold().
  """

  sampler: Any = DPMSolverPP()
  steps: int = 20
  grid: Any = Grid("uniform")
  guidance: Any = ClassifierFree(2.0)
  transforms: tuple = ()

  def __post_init__(self):
    check_ranges(self, "sampling")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """How samples are evaluated by default, and how often while the last stage that draws samples trains.

  Every `every_steps` steps, and at the last one, `n` samples are drawn.  The denoiser with the best
  `metric` is kept in addition to the newest.  `weights` is a file of the extractor's parameters, if
  it needs one.  Samples of a model that reads captions are given those of the split `captions`, by default
  the held-out one, and judged by `scorer`.
  """

  extractor: str = ""  # a name of jldm.metrics.extractors
  weights: str = ""
  n: int = 1000
  every_steps: int = 0  # 0: no evaluations while training
  metric: str = "frechet"
  scorer: str = ""  # a name of jldm.evaluation.captions
  captions: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A data set, the stages in the order of training, and the seed of all random numbers.

  An imported autoencoder is an experiment with one stage and no data.  `--set` addresses a stage by name.

  Raises:
    UserError: a stage name that is reserved or used twice; a stage that needs, or starts from, itself
      or a later one.
  """

  data: Any = None
  stages: tuple[Stage | Pretrained, ...]
  sampling: Sampling = Sampling()
  evaluation: Evaluation = Evaluation()
  seed: int = 0

  def __post_init__(self):
    check_stages(self.stages)
    check_ranges(self)

  @property
  def names(self) -> tuple[str, ...]:
    """The names of the stages, in order."""
    return tuple(stage.name for stage in self.stages)

  def stage(self, name: str) -> Any:
    """The stage with this name; UserError if there is none."""
    if name not in self.names:
      raise UserError(f"there is no stage {name!r}; expected one of {', '.join(self.names)}")
    return self.stages[self.names.index(name)]

  def earlier(self, name: str) -> tuple[Stage, ...]:
    """The stages before the one with this name."""
    return self.stages[: self.names.index(name)]

  def last(self, makes: str) -> Stage | Pretrained | None:
    """The last stage whose result is of a kind, such as "denoiser"; None if there is none."""
    return next((stage for stage in reversed(self.stages) if stage.makes == makes), None)

  def with_stage(self, stage: Stage | Pretrained) -> "Experiment":
    """The experiment with `stage` in place of the stage of the same name."""
    self.stage(stage.name)
    return dataclasses.replace(
      self, stages=tuple(stage if each.name == stage.name else each for each in self.stages)
    )


def check_stages(stages: tuple) -> None:
  """Raises a UserError for illegal names, and for sources that do not come before their stage."""
  kinds = [type(stage) for stage in stages] if isinstance(stages, tuple) else [type(stages)]
  if not kinds or not set(kinds) <= {Stage, Pretrained}:
    has = ", ".join(kind.__name__ for kind in kinds) or "nothing"
    raise UserError(
      f"stages has {has}; expected a tuple of Stage(name=…, objective=…), or Pretrained('…'), at least one"
    )
  names = [stage.name for stage in stages]
  for i, stage in enumerate(stages):
    if not isinstance(stage.name, str) or not stage.name.isidentifier() or stage.name in RESERVED_NAMES:
      raise UserError(
        f"stage name {stage.name!r}; expected letters, digits and _, and none of {', '.join(RESERVED_NAMES)}"
      )
    if stage.name in names[:i]:
      raise UserError(f"two stages are named {stage.name!r}; give one of them another name")
    if isinstance(stage, Stage):
      check_sources(stage, names[:i], names[i:])


def check_sources(stage: Stage, earlier: list[str], later: list[str]) -> None:
  """Raises a UserError if a stage needs or starts from itself or a later one, or needs a role twice."""
  if not isinstance(stage.needs, tuple) or not all(isinstance(need, Need) for need in stage.needs):
    raise UserError(
      f"{stage.name}.needs={stage.needs!r}; expected a tuple such as (Need('codec', 'autoencoder'),)"
    )
  sources = [(f"{stage.name}.needs: {need.role}", need.source) for need in stage.needs] + [
    (f"{stage.name}.start", stage.start)
  ]
  for what, source in sources:
    if source in later:
      known = f"an earlier stage ({', '.join(earlier)})" if earlier else "no stage, since none comes before,"
      raise UserError(
        f"{what} is {source!r}, which does not come before; expected {known} or the path of a workdir"
      )
  roles = [need.role for need in stage.needs]
  if len(set(roles)) < len(roles):
    raise UserError(f"{stage.name}.needs has two of one role: {', '.join(roles)}; expected one of each")
