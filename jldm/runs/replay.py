"""Logged steps computed again from a kept checkpoint, and compared to the bit.

A line of metrics.jsonl holds means over the steps since the line before it, and every checkpoint
ends a line: so the steps of a line are known, and a run that was resumed has the lines of one that
was not.
"""

import dataclasses
from pathlib import Path

import jax

from jldm.core.errors import ReplayMismatchError, UserError
from jldm.inference.load import find_stage
from jldm.runs import latents, run as runs
from jldm.runs.frozen import load_frozen
from jldm.runs.stage import start_or_resume
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.logging import means, rows
from jldm.train.loop import Hook, fit

THROUGHPUT = "images_per_second"  # in every line of steps, and not computed again


@dataclasses.dataclass(frozen=True)
class Replayed:
  """lines: how many were equal, the last of them at step `last`; start: the checkpoint they were computed from."""

  start: int
  last: int
  lines: int


def replay(workdir: str | Path, stage: str, first: int, last: int, devices: int | None = None) -> Replayed:
  """Computes the lines at steps `first` to `last` of a stage again; writes nothing.

  Raises:
    DifferentError: a line differs; it names the first one.
    UserError: no line in that range, no checkpoint kept before it, or data that are not there any more.
  """
  workdir = Path(workdir)
  at = find_stage(workdir, stage)
  run = runs.Run(at, devices)
  steps = range(1, at.stage.steps + 1)
  logged = [
    row
    for _, row in rows(workdir / "metrics.jsonl")
    if row["stage"] == stage and THROUGHPUT in row and row["step"] in steps
  ]
  after, wanted = select_lines(logged, stage, first, last)
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
      found = means(jax.device_get(pending))
      pending.clear()
      compare_line(
        wanted[n], found, f"{stage} step {n}", f"the checkpoint of step {before[-1]} on {mesh.size} devices"
      )
      equal.append(n)

  stop = max(wanted)
  fit(
    step,
    state,
    (batch for batch, _ in zip(batches, range(before[-1], stop))),
    key,
    frozen,
    stop,
    (Hook(1, compare),),
    changes,
  )
  return Replayed(before[-1], stop, len(equal))


def select_lines(logged: list[dict], stage: str, first: int, last: int) -> tuple[int, dict[int, dict]]:
  """The step that the first line in the range begins after, and the lines by step."""
  wanted = {row["step"]: row for row in logged if first <= row["step"] <= last}
  if not wanted:
    told = (
      f"its lines are of steps {logged[0]['step']} to {logged[-1]['step']}" if logged else "it has no lines"
    )
    raise UserError(f"metrics.jsonl has no line of {stage} at steps {first}:{last}; {told}")
  return max((row["step"] for row in logged if row["step"] < min(wanted)), default=0), wanted


def compare_line(logged: dict, found: dict, where: str, start: str) -> None:
  """Raises DifferentError where a line does not say what was found."""
  said = {name: value for name, value in logged.items() if name not in ("stage", "step", THROUGHPUT)}
  if unlike := [name for name in said | found if said.get(name) != found.get(name)]:
    told = "; ".join(
      f"{name} is logged as {said.get(name)!r} and computed as {found.get(name)!r}" for name in unlike[:3]
    )
    raise ReplayMismatchError(
      f"{where} differs: {told}; computed from {start}, which must be as many as it was trained on"
    )


def open_inputs(run: runs.Run, mesh: jax.sharding.Mesh) -> tuple:
  """What a stage reads, and what its objective is given beside its state."""
  frozen = load_frozen(run, mesh)
  if "codec" not in frozen:
    return run.experiment.data.open(run.experiment.data.train), frozen
  cache = latents.open_encoded(run, frozen["codec"].params)
  if cache is None:
    raise UserError(
      f"the latents of {str(run.workdir)!r} are not there any more, or damaged; jldm train makes them again as "
      f"long as its {run.stage.name} is not finished"
    )
  return cache, frozen
