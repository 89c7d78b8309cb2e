"""The denoiser that is best by a figure, kept beside the newest one: W/<stage>/best/<step>/, {"ema", "score"}.

Every so often while the last stage that draws trains, its samples are judged,
W/evaluation/<step>.json, and what was best so far is kept until something better comes.  Training
itself takes no notice: it ends with the same bits.
"""

from collections.abc import Callable, Iterator
import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from jldm.config.experiment import Experiment
from jldm.core.errors import UserError
from jldm.distributed import multihost, sharding
from jldm.evaluation import evaluate, judge as judging
from jldm.evaluation.evaluate import EvaluationSettings
from jldm.inference.load import Model
from jldm.metrics.extractors.extractor import LoadedExtractor
from jldm.runs.run import Run
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.logging import Log
from jldm.train.loop import Hook
from jldm.train.state import TrainState, averaged

SCORE = jax.ShapeDtypeStruct((), jnp.float32)  # less is better


def evaluation_options(experiment: Experiment, devices: sharding.Devices) -> EvaluationSettings:
  """What is drawn and judged while training."""
  asked = experiment.evaluation
  metrics = [name for name, figures in judging.FIGURES.items() if asked.metric in figures]
  return EvaluationSettings(
    n=asked.n, seed=experiment.seed, metrics=tuple(dict.fromkeys((*judging.USUAL, *metrics))), devices=devices
  )


def check_selection(experiment: Experiment, model: Model) -> LoadedExtractor | None:
  """The extractor, before anything is trained; None where nothing is judged while training.

  Raises:
    UserError: an extractor, a metric or a number that cannot be had.
  """
  asked, known = experiment.evaluation, [name for figures in judging.FIGURES.values() for name in figures]
  if asked.every_steps < 0:
    raise UserError(
      f"evaluation.every_steps={asked.every_steps}; expected at least 1, or 0: not while training"
    )
  if not asked.every_steps:
    return None
  if asked.metric not in known:
    raise UserError(f"evaluation.metric={asked.metric!r}; expected one of {', '.join(known)}")
  if needed := [name for name, conditioner in model.conditioners.items() if not conditioner.dropout]:
    raise UserError(
      f"evaluation.every_steps: the model always needs {needed[0]!r}, and samples without it are not judged while "
      "training; set it to 0"
    )
  evaluate.check_pictures(model)
  loaded = evaluate.open_extractor(experiment.evaluation)
  evaluate.check_evaluation(experiment, loaded, evaluation_options(experiment, None))
  return loaded


@contextlib.contextmanager
def select_best(
  run: Run,
  model: Model,
  params_of: Callable[[TrainState], dict],
  loaded: LoadedExtractor | None,
  devices: sharding.Devices,
) -> Iterator[Callable[[Log], tuple[Hook, ...]]]:
  """hooks(log) -> what judges the stage's samples, drawn by `model` with params_of(state), and keeps the best."""
  if loaded is None:
    yield lambda log: ()
    return
  experiment, name = run.experiment, run.stage.name
  asked, how, folder = (
    experiment.evaluation,
    evaluation_options(experiment, devices),
    workdirs.evaluation_folder(run.workdir),
  )
  real = evaluate.prepare_real_images(experiment, loaded, how, folder)
  scores = real.judge.score(real.judge.real)
  if asked.metric not in scores:
    raise UserError(
      f"evaluation.metric={asked.metric!r} is left out: {real.judge.left_out[asked.metric]}; choose another"
    )
  with Checkpoints(workdirs.best_folder(run.workdir, name), keep=1) as kept:
    kept.latest()  # reports a damaged checkpoint and sets it aside

    def hooks(log: Log) -> tuple[Hook, ...]:
      def call(n, state, metrics):
        samples = evaluate.generate_samples(model, params_of(state), real, how, run.notice.between)
        record = {"stage": name, "step": n, "checkpoint": "latest"}
        record |= evaluate.judge_samples(model, samples, real, how, scores) | {
          "versions": evaluate.package_versions()
        }
        if multihost.is_primary():
          evaluate.write_evaluation(folder / f"{n}.json", record)
        values = {metric: each["value"] for metric, each in record["metrics"].items()}
        log.record(n, {f"evaluation_{metric}": value for metric, value in values.items()})
        value, real_value = values[asked.metric], scores[asked.metric].value
        log.say(f"{name} step {n}: {asked.metric} {value:.4g}, of real pictures {real_value:.4g}")
        score = np.float32(multihost.broadcast(value if asked.metric in judging.LESS_IS_BETTER else -value))
        if not metrics["skipped"] and is_better(kept, n, score):
          kept.save(n, averaged(state.ema[0], state.extra) | {"score": score})

      return (Hook(asked.every_steps, call, at_end=True),)

    yield hooks


def is_better(kept: Checkpoints, step: int, score: np.float32) -> bool:
  """Whether a score is the best so far.  A run that was resumed comes to steps that were judged
  before: they stay as they are.
  """
  kept.commit(wait=True)
  best = multihost.broadcast(max(kept.steps(), default=-1))
  return best < 0 or (step > best and score < kept.restore(best, {"score": SCORE})["score"])
