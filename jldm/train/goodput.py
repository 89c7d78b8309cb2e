"""The seconds of a process by what they were spent on.

Every second is in exactly one part, so the parts add up to the wall clock:

  start       until a stage starts, and all that is in no other part: imports, checks
  compile     compiling the programs of a stage, and their first run
  restore     reading and verifying checkpoints
  data        waiting for batches
  step        training
  lost        repeating steps that a killed run made after its last checkpoint
  save        starting and committing checkpoints
  evaluation  measurements and previews during training, with their compilation
  encode      computing the latents of the training set

A nested part counts as the inner one: a save within a step is not part of the step.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import time

from jldm.core.pids import age_s
from jldm.train.loop import Hook

PARTS = ("start", "compile", "restore", "data", "step", "lost", "save", "evaluation", "encode")


class Goodput:
  """A clock whose seconds go to one of PARTS at a time.

  It starts with the process, or at `began` of time.monotonic().
  """

  def __init__(self, began: float | None = None):
    self.began = self.since = time.monotonic() - age_s() if began is None else began
    self.seconds = dict.fromkeys(PARTS, 0.0)
    self.part = "start"

  def switch(self, part: str) -> str:
    """Gives the seconds since the last switch to the current part, changes to `part`, returns the old one."""
    if part not in self.seconds:
      raise ValueError(f"part={part!r}; expected one of {PARTS}")
    now = time.monotonic()
    self.seconds[self.part] += now - self.since
    before, self.part, self.since = self.part, part, now
    return before

  @contextlib.contextmanager
  def measure(self, part: str) -> Iterator[None]:
    """The seconds of the block go to this part, unless a nested block takes them."""
    before = self.switch(part)
    try:
      yield
    finally:
      self.switch(before)

  def hook(self, part: str, hook: Hook) -> Hook:
    def call(n, state, metrics):
      with self.measure(part):
        hook.call(n, state, metrics)

    return hook._replace(call=call)

  def waiting(self, items: Iterable) -> Iterator:
    """The items; the seconds of waiting for one go to `data`."""
    items, done = iter(items), object()
    while True:
      with self.measure("data"):
        item = next(items, done)
      if item is done:
        return
      yield item

  def steps(self, step: Callable, start: int, made_before: int) -> Callable:
    """A training step that switches the part.

    It is `compile` the first time, then `lost` up to step `made_before`, then `step`.

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

  def seconds_by_part(self) -> dict[str, float]:
    """Seconds by part, and their sum."""
    self.switch(self.part)
    seconds = {f"seconds_{part}": round(value, 3) for part, value in self.seconds.items()}
    return seconds | {"seconds": round(self.since - self.began, 3)}
