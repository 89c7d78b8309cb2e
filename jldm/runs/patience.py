"""Early stopping: a stage ends once its held-out figure has not improved for `Stage.patience` measurements.

The figure is that of the last hook that measures one: PSNR of an autoencoder; of a denoiser the metric of
its evaluations, else the held-out loss.  Its values are those in metrics.jsonl.  The stage ends with the
step after the measurement, so that its last checkpoint, which has its result, is none that may be
committed already.
"""

from collections.abc import Sequence
import math

from jldm.config.experiment import Stage
from jldm.core.errors import UserError
from jldm.distributed import multihost
from jldm.evaluation.judge import LESS_IS_BETTER
from jldm.runs.held_out import FIGURE
from jldm.train.logging import Log, read_rows
from jldm.train.loop import End, Hook
from jldm.train.state import TrainState

LOWER = {FIGURE, *(f"evaluation_{metric}" for metric in LESS_IS_BETTER)}  # the figures where less is better


def watch_figure(
  stage: Stage, hooks: Sequence[Hook], log: Log, end: End, state: TrainState
) -> tuple[Hook, ...]:
  """The hook that brings forward the end of a stage; to be called after `hooks`.

  A run that was stopped between the checkpoint of `state` and its measurement measures first.

  Raises:
    UserError: no hook measures a figure.
  """
  if not stage.patience:
    return ()
  measuring = [hook for hook in hooks if hook.measures]
  if not measuring:
    raise UserError(f"{stage.name}.patience={stage.patience}, and no example is held out; set it to 0")
  measure = measuring[-1]

  def decide(n, state, metrics):
    del state, metrics
    values = logged_values(log, measure.measures, n)
    best = multihost.broadcast(best_place(values, measure.measures in LOWER))
    since = multihost.broadcast(len(values)) - 1 - best
    if since >= stage.patience and n < end.step:
      end.step = min(n + 1, end.step)
      log.print_line(
        f"{stage.name} step {n}: {measure.measures} has not improved in the last {since} measurements "
        f"(patience={stage.patience}); the stage ends with step {end.step}"
      )

  start = int(state.step)
  if start and start % measure.every_steps == 0:
    if multihost.broadcast(log.writes and start not in logged_values(log, measure.measures, start)):
      measure.call(start, state, {"skipped": 0})
    decide(start, state, {})
  return (Hook(measure.every_steps, decide),)


def logged_values(log: Log, figure: str, last: int) -> dict[int, float]:
  """The values of a figure by step, up to step `last`; process 0 alone has them."""
  rows = (row for _, row in read_rows(log.path)) if log.writes else ()
  of_stage = (row for row in rows if row["stage"] == log.stage and row["step"] <= last)
  return {row["step"]: row[figure] for row in of_stage if type(row.get(figure)) in (int, float)}


def best_place(values: dict[int, float], lower: bool) -> int:
  """The place of the first of the best values, in order of steps; a value that is not finite is the worst."""
  ordered = [value if lower else -value for _, value in sorted(values.items())]
  ordered = [value if math.isfinite(value) else math.inf for value in ordered]
  return ordered.index(min(ordered)) if ordered else 0
