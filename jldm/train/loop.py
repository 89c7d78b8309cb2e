"""The training loop: one step after another, and hooks at their intervals."""

import collections
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from jldm.train.state import TrainState

IN_FLIGHT = 2  # hides the host's work; without a bound, CPU devices of one process starve each other and hang


class Hook(NamedTuple):
  """call(step, state, metrics) after every `every_steps` steps and, if `at_end`, after the last.

  A hook may use the state until it returns: the next step donates it.
  """

  every_steps: int
  call: Callable[[int, TrainState, dict], None]
  at_end: bool = False


class Change(NamedTuple):
  """call(step, state, batch) -> the next state, after every `every_steps` steps, before their hooks."""

  every_steps: int
  call: Callable[[int, TrainState, Any], TrainState]


def fit(
  step: Callable,
  state: TrainState,
  batches: Iterable,
  root: jax.Array,
  frozen: Any,
  stop: int,
  hooks: Iterable[Hook],
  changes: Iterable[Change] = (),
) -> TrainState:
  """Trains from state.step to step `stop`, with one of `batches` (device arrays) per step.

  The host runs ahead of the devices by IN_FLIGHT steps and waits otherwise only if a hook does.
  `changes` change the state outside the step.
  """
  hooks, changes, in_flight = tuple(hooks), tuple(changes), collections.deque()
  for n, batch in zip(range(int(state.step) + 1, stop + 1), batches, strict=True):
    state, metrics = step(state, batch, root, frozen)
    for change in changes:
      if n % change.every_steps == 0:
        state = change.call(n, state, batch)
    in_flight.append(metrics)
    if len(in_flight) > IN_FLIGHT:
      jax.block_until_ready(in_flight.popleft())
    for hook in hooks:
      if n % hook.every_steps == 0 or (hook.at_end and n == stop):
        hook.call(n, state, metrics)
  return state
