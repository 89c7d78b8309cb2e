"""Computes logged steps again from a checkpoint and compares them to the bit.

A line of metrics.jsonl holds means over the steps since the line before.  Every checkpoint ends a
line.  So the steps of a line are known, and a resumed run logs the same lines as an unbroken one.
"""

import dataclasses
import itertools
from pathlib import Path

import jax

from jldm.core.errors import ReplayMismatchError, UserError
from jldm.data.balance import balance
from jldm.inference.model import find_stage
from jldm.runs import latents, run as runs
from jldm.runs.frozen import load_frozen
from jldm.runs.stage import start_or_resume
from jldm.storage import workdir as workdirs
from jldm.storage.changes import is_continued
from jldm.storage.checkpoint import Checkpoints
from jldm.train.logging import mean_metrics, read_rows
from jldm.train.loop import End, Hook, fit

THROUGHPUT = "images_per_second"  # in every line of training steps
NOT_COMPUTED = ("stage", "step", "learning_rate", THROUGHPUT)  # by the step function


@dataclasses.dataclass(frozen=True)
class Replayed:
  """`lines` lines were equal, the last at step `last`, computed from the checkpoint of step `start`."""

  start: int
  last: int
  lines: int


def replay(workdir: str | Path, stage: str, first: int, last: int, devices: int | None = None) -> Replayed:
  """Computes the lines at steps `first` to `last` of a stage again; writes nothing.

  Raises:
    DifferentError: a line differs; it names the first one.
    UserError: no line in that range, no checkpoint before it, or data that are missing.
  """
  workdir = Path(workdir)
  at = find_stage(workdir, stage)
  run = runs.Run(at, devices)
  steps = range(1, at.stage.steps + 1)
  logged = [
    row
    for _, row in read_rows(workdir / "metrics.jsonl")
    if row["stage"] == stage and THROUGHPUT in row and row["step"] in steps
  ]
  after, wanted = select_lines(logged, stage, first, last)
  check_settings(workdir, stage, after)
  with Checkpoints(workdirs.checkpoints_folder(workdir, stage), read_only=True) as saved:
    kept = saved.steps()
    if not (before := [step for step in kept if step <= after]):
      there = f"steps after {kept[0]} can be replayed" if kept else "it has none"
      raise UserError(
        f"{stage} steps {first}:{last} need a checkpoint of step {after} or before, and none is kept; {there}"
      )
    mesh = runs.mesh_for_stage(at.stage, devices)
    source, frozen = open_inputs(run, mesh)
    step, state, batches, key, changes = start_or_resume(run, source, frozen, saved, mesh, before[-1])
  pending, equal = [], []

  def compare(n, state, metrics):
    pending.append(metrics)
    if n == after:
      pending.clear()
    elif n in wanted:
      computed = mean_metrics(jax.device_get(pending))
      pending.clear()
      compare_line(
        wanted[n],
        computed,
        f"{stage} step {n}",
        f"the checkpoint of step {before[-1]} on {mesh.size} devices",
      )
      equal.append(n)

  stop = max(wanted)
  batches = itertools.islice(batches, stop - before[-1])
  fit(step, state, batches, key, frozen, End(stop), (Hook(1, compare),), changes)
  return Replayed(before[-1], stop, len(equal))


def check_settings(workdir: Path, stage: str, after: int) -> None:
  """Raises a UserError if steps after `after` were trained with other settings than those of now."""
  for step, field in workdirs.read_changes(workdir, stage):
    if step > after and is_continued(field.partition(".")[2]):
      raise UserError(
        f"{stage} was trained up to step {step} with another {field}; steps after {step} can be replayed"
      )


def select_lines(logged: list[dict], stage: str, first: int, last: int) -> tuple[int, dict[int, dict]]:
  """The step after which the first line of the range starts, and the lines by step."""
  wanted = {row["step"]: row for row in logged if first <= row["step"] <= last}
  if not wanted:
    legal = (
      f"its lines are of steps {logged[0]['step']} to {logged[-1]['step']}" if logged else "it has no lines"
    )
    raise UserError(f"metrics.jsonl has no line of {stage} at steps {first}:{last}; {legal}")
  return max((row["step"] for row in logged if row["step"] < min(wanted)), default=0), wanted


def compare_line(logged: dict, computed: dict, where: str, start: str) -> None:
  """Raises a ReplayMismatchError if a logged line and the computed one differ."""
  logged = {name: value for name, value in logged.items() if name not in NOT_COMPUTED}
  if different := [name for name in logged | computed if logged.get(name) != computed.get(name)]:
    listed = "; ".join(
      f"{name} is logged as {logged.get(name)!r} and computed as {computed.get(name)!r}"
      for name in different[:3]
    )
    raise ReplayMismatchError(
      f"{where} differs: {listed}; computed from {start}; use as many devices as the training did"
    )


def open_inputs(run: runs.Run, mesh: jax.sharding.Mesh) -> tuple:
  """The training source of a stage, and the frozen networks of its objective."""
  frozen = load_frozen(run, mesh)
  data, order = run.experiment.data, lambda source: source
  if data.balance or "codec" not in frozen:
    workdirs.check_data(run.workdir, data.fingerprint())
    train_set = data.open(data.train)
    order = (lambda source: balance(source, train_set)) if data.balance else order
  if "codec" not in frozen:
    return order(train_set), frozen
  cache = latents.open_encoded(run, frozen["codec"].params, frozen)
  if cache is None:
    raise UserError(
      f"the latents of {str(run.workdir)!r} are missing or damaged; jldm train makes them again as long as "
      f"its {run.stage.name} is not finished"
    )
  return order(cache), run.stage.objective.settle(frozen)
