"""Evaluates samples while training, and keeps the denoiser with the best score.

Every few steps of the last stage that draws samples, an evaluation is written to
W/evaluation/<step>.json.  The best denoiser so far is kept in W/<stage>/best/<step>/ as {"ema", "score"}.
Training does not depend on it and ends with the same bits.
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
from jldm.inference.model import Model
from jldm.metrics.extractors.extractor import LoadedExtractor
from jldm.runs.run import Run
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.logging import Log
from jldm.train.loop import Hook
from jldm.train.state import TrainState, averaged_items

SCORE = jax.ShapeDtypeStruct((), jnp.float32)  # lower is better


def evaluation_options(experiment: Experiment, devices: sharding.Devices) -> EvaluationSettings:
  """The settings of evaluations while training."""
  config = experiment.evaluation
  metrics = [name for name, figures in judging.FIGURES.items() if config.metric in figures]
  return EvaluationSettings(
    n=config.n,
    seed=experiment.seed,
    metrics=tuple(dict.fromkeys((*judging.USUAL, *metrics))),
    devices=devices,
  )


def check_selection(experiment: Experiment, model: Model) -> LoadedExtractor | None:
  """The extractor for evaluations while training, opened before anything is trained; None for none.

  Raises:
    UserError: an extractor, a metric or a number that is not legal.
  """
  config, known = experiment.evaluation, [name for figures in judging.FIGURES.values() for name in figures]
  if not config.every_steps:
    return None
  if config.metric not in known:
    raise UserError(f"evaluation.metric={config.metric!r}; expected one of {', '.join(known)}")
  if needed := [name for name, conditioner in model.conditioners.items() if not conditioner.dropout]:
    raise UserError(
      f"evaluation.every_steps={config.every_steps}: the model always needs {needed[0]!r}, but evaluations "
      "while training draw samples without conditions; set it to 0"
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
  """Gives hooks(log), which evaluate samples of `model` with params_of(state) and keep the best."""
  if loaded is None:
    yield lambda log: ()
    return
  experiment, name = run.experiment, run.stage.name
  config, folder = experiment.evaluation, workdirs.evaluation_folder(run.workdir)
  settings = evaluation_options(experiment, devices)
  real = evaluate.prepare_real_images(experiment, loaded, settings, folder)
  scores = real.judge.score(real.judge.real)
  if config.metric not in scores:
    raise UserError(
      f"evaluation.metric={config.metric!r} is left out: {real.judge.left_out[config.metric]}; choose another"
    )
  with Checkpoints(workdirs.best_folder(run.workdir, name), keep=1) as kept:
    kept.latest()  # reports a damaged checkpoint and sets it aside

    def hooks(log: Log) -> tuple[Hook, ...]:
      def call(n, state, metrics):
        samples = evaluate.generate_samples(model, params_of(state), real, settings, run.notice.checked)
        record = {"stage": name, "step": n, "checkpoint": "latest"}
        record |= evaluate.judge_samples(model, samples, real, settings, scores) | {
          "versions": evaluate.package_versions()
        }
        if multihost.is_primary():
          evaluate.write_evaluation(folder / f"{n}.json", record)
        values = {metric: each["value"] for metric, each in record["metrics"].items()}
        log.record(n, {f"evaluation_{metric}": value for metric, value in values.items()})
        value, real_value = values[config.metric], scores[config.metric].value
        log.print_line(f"{name} step {n}: {config.metric} {value:.4g}, of real pictures {real_value:.4g}")
        score = np.float32(multihost.broadcast(value if config.metric in judging.LESS_IS_BETTER else -value))
        if not metrics["skipped"] and is_better(kept, n, score):
          kept.save(n, averaged_items(state.ema[0], state.extra) | {"score": score})

      return (Hook(config.every_steps, call, at_end=True, measures=f"evaluation_{config.metric}"),)

    yield hooks


def is_better(kept: Checkpoints, step: int, score: np.float32) -> bool:
  """Whether a score is the best so far; False for a step that was evaluated before the run was resumed."""
  kept.commit(wait=True)
  best = multihost.broadcast(max(kept.steps(), default=-1))
  return best < 0 or (step > best and score < kept.restore(best, {"score": SCORE})["score"])
