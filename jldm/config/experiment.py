"""An experiment: frozen dataclasses of real objects.

What may stand in one is in `registry`, its form as JSON in `serialize`, and `--set` in `override`.
"""

import dataclasses
from typing import Any

from jldm.models.codecs.images import Identity
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.grid import Grid
from jldm.samplers.guidance import ClassifierFree
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One training: what is learned, how, and for how long; intervals are in steps.

  `devices` share a batch where the caller does not say how many; 0 is all (on a CPU, the most that divide the batch).
  `start` is a workdir whose autoencoder this one goes on from, with the mean and std of its latents; of no steps, it is that.
  """

  objective: Any
  optimizer: Any = AdamW()
  steps: int = 10_000
  batch_size: int = 128
  accumulate: int = 1  # microbatches a step
  ema: Any = Decay(0.999)
  devices: int = 0
  log_every_steps: int = 50
  save_every_steps: int = 1000
  picture_every_steps: int = 1000
  snapshot_every_steps: int = 1000  # of the averages, where ema is Power(...)
  start: str = ""


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """The autoencoder of another workdir, trained or imported, as it is: a Stage of no steps that starts there.

  `batch_size` images are encoded at once.
  """

  path: str
  batch_size: int = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
  """How samples are drawn.

  sampler: an object of jldm.samplers (docs/samplers.md has what each is worth); None is the one that an edit uses by itself.
  steps: how many, on `grid`; the grid Pairs(...) has a number of its own.
  guidance: a rule of jldm.samplers.guidance, or PerConditioner(names, scales).
  transforms: what is put around the denoiser, in this order, such as Threshold().
  """

  sampler: Any = DPMSolverPP()
  steps: int = 20
  grid: Any = Grid("uniform")
  guidance: Any = ClassifierFree(2.0)
  transforms: tuple = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What samples are judged by where the caller does not say, and how often while the denoiser trains.

  Of every `every_steps` steps, and the last, `n` samples are drawn; the denoiser whose `metric` is best is kept beside the
  newest.  `weights` is a file of the extractor's parameters, where it needs one.
  """

  extractor: str = ""  # a name of jldm.metrics.extractors
  weights: str = ""
  n: int = 1000
  every_steps: int = 0  # 0: not while training
  metric: str = "frechet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Data, the two stages, and the seed of all that is random; that of an imported autoencoder has neither data nor denoiser.

  autoencoder=Identity() stands for none: the denoiser, which is then trained alone, works on pixels.
  """

  data: Any = None
  autoencoder: Stage | Pretrained | Identity
  denoiser: Stage | None = None
  sampling: Sampling = Sampling()
  evaluation: Evaluation = Evaluation()
  seed: int = 0
