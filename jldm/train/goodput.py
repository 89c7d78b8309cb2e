"""Where the seconds of a process went: every one of them is in exactly one part, so that the parts add
up to the wall clock.

  start       until a stage begins, and whatever else is in no other part: imports, checks
  compile     making the programs of a stage, which run first with their compilation
  restore     reading and verifying checkpoints
  data        waiting for batches
  step        the training itself
  lost        steps that were made before: a killed run had come further than its last checkpoint
  save        starting and committing checkpoints
  evaluation  measurements and pictures on the way, with their own compilation
  encode      the training set's latents

What is nested counts as the inner part: a save within a step is not the step's.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import time

from jldm.core.pids import age_s
from jldm.train.loop import Hook

PARTS = ("start", "compile", "restore", "data", "step", "lost", "save", "evaluation", "encode")


class Goodput:
  """A clock that is always on one of PARTS; from the start of the process, or from `began` of time.monotonic()."""

  def __init__(self, began: float | None = None):
    self.began = self.since = time.monotonic() - age_s() if began is None else began
    self.seconds = dict.fromkeys(PARTS, 0.0)
    self.part = "start"

  def switch(self, part: str) -> str:
    """The seconds since the last switch are of the part that was on; returns it."""
    if part not in self.seconds:
      raise ValueError(f"part={part!r}; expected one of {PARTS}")
    now = time.monotonic()
    self.seconds[self.part] += now - self.since
    before, self.part, self.since = self.part, part, now
    return before

  @contextlib.contextmanager
  def on(self, part: str) -> Iterator[None]:
    """The block is of this part, but for what is nested in it."""
    before = self.switch(part)
    try:
      yield
    finally:
      self.switch(before)

  def hook(self, part: str, hook: Hook) -> Hook:
    def call(n, state, metrics):
      with self.on(part):
        hook.call(n, state, metrics)

    return hook._replace(call=call)

  def waiting(self, items: Iterable) -> Iterator:
    """The items; waiting for one is of `data`."""
    items, done = iter(items), object()
    while True:
      with self.on("data"):
        item = next(items, done)
      if item is done:
        return
      yield item

  def steps(self, step: Callable, start: int, made_before: int) -> Callable:
    """A training step that tells the part: `compile` the first time, then `lost` up to step
    `made_before`, then `step`.

    `start` is the number of the step before the first.
    """
    count = start

    def call(*args):
      nonlocal count
      count += 1
      self.switch("compile" if count == start + 1 else "lost" if count <= made_before else "step")
      result = step(*args)
      if count == start + 1:
        self.switch("lost" if count <= made_before else "step")
      return result

    return call

  def line(self) -> dict[str, float]:
    """Seconds by part, and their sum."""
    self.switch(self.part)
    told = {f"seconds_{part}": round(value, 3) for part, value in self.seconds.items()}
    return told | {"seconds": round(self.since - self.began, 3)}
