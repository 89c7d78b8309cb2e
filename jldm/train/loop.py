"""The training loop: one step after another, and hooks at their intervals."""

import collections
from collections.abc import Callable, Iterable
import dataclasses
from typing import Any, NamedTuple

import jax

from jldm.train.state import TrainState

IN_FLIGHT = 2  # hides the host's work; without a bound, CPU devices of one process starve each other and hang


class Hook(NamedTuple):
  """call(step, state, metrics) after every `every_steps` steps and, if `at_end`, after the last.

  A hook may use the state until it returns: the next step donates it.
  measures: the held-out figure that it logs, by its name in metrics.jsonl.
  """

  every_steps: int
  call: Callable[[int, TrainState, dict], None]
  at_end: bool = False
  measures: str = ""


class Change(NamedTuple):
  """call(step, state, batch) -> the next state, after every `every_steps` steps, before their hooks."""

  every_steps: int
  call: Callable[[int, TrainState, Any], TrainState]


@dataclasses.dataclass
class End:
  """The last step of a training, which a hook may bring forward to a later step than its own."""

  step: int

  def __post_init__(self):
    self.planned = self.step


def fit(
  step: Callable,
  state: TrainState,
  batches: Iterable,
  root: jax.Array,
  frozen: Any,
  end: End,
  hooks: Iterable[Hook],
  changes: Iterable[Change] = (),
) -> TrainState:
  """Trains from state.step to step `end.step`, with one of `batches` (device arrays) per step.

  The host runs ahead of the devices by IN_FLIGHT steps and waits otherwise only if a hook does.
  `changes` change the state outside the step.
  """
  hooks, changes, in_flight = tuple(hooks), tuple(changes), collections.deque()
  for n, batch in zip(range(int(state.step) + 1, end.planned + 1), batches, strict=True):
    state, metrics = step(state, batch, root, frozen)
    for change in changes:
      if n % change.every_steps == 0:
        state = change.call(n, state, batch)
    in_flight.append(metrics)
    if len(in_flight) > IN_FLIGHT:
      jax.block_until_ready(in_flight.popleft())
    for hook in hooks:
      if n % hook.every_steps == 0 or (hook.at_end and n == end.step):
        hook.call(n, state, metrics)
    if n == end.step < end.planned:
      break
  return state
