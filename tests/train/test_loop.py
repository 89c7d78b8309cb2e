from typing import NamedTuple

import jax
import pytest

from jldm.train.loop import IN_FLIGHT, Change, End, Hook, fit

ROOT = object()
FROZEN = object()


class State(NamedTuple):
  step: int


class Device:
  """Counts how many results were waited for."""

  def __init__(self):
    self.waited = []

  def step(self, state, batch, root, frozen):
    assert root is ROOT and frozen is FROZEN and batch == state.step + 1
    assert len(self.waited) >= state.step - self.start - IN_FLIGHT, "the host is too far ahead"
    return State(state.step + 1), Metrics(state.step + 1, self.waited)

  def fit(self, start, stop, hooks=(), batches=None):
    self.start = start
    batches = range(start + 1, stop + 1) if batches is None else batches
    return fit(self.step, State(start), batches, ROOT, FROZEN, End(stop), hooks)


class Metrics:
  def __init__(self, step, waited):
    self.number, self.waited = step, waited

  def block_until_ready(self):
    self.waited.append(self.number)
    return self


@pytest.mark.parametrize(
  "start, stop, every, at_end, expected",
  [
    (0, 7, 1, False, [1, 2, 3, 4, 5, 6, 7]),
    (0, 7, 3, False, [3, 6]),
    (0, 7, 3, True, [3, 6, 7]),
    (0, 6, 3, True, [3, 6]),
    (4, 7, 3, True, [6, 7]),
    (0, 7, 100, False, []),
    (0, 7, 100, True, [7]),
  ],
)
def test_hooks_are_called_at_their_intervals(start, stop, every, at_end, expected):
  calls = []
  hook = Hook(every, lambda n, state, metrics: calls.append((n, state.step, metrics.number)), at_end)
  assert Device().fit(start, stop, (hook for _ in range(1))) == State(stop)
  assert calls == [(n, n, n) for n in expected]


def test_hooks_are_called_in_their_order():
  calls = []
  note = lambda name: lambda n, state, metrics: calls.append((n, name))
  Device().fit(0, 2, [Hook(2, note("a")), Hook(1, note("b"))])
  assert calls == [(1, "b"), (2, "a"), (2, "b")]


@pytest.mark.parametrize("every, last", [(1, 2), (2, 3), (5, 6)])
def test_a_hook_may_bring_the_end_forward_to_the_step_after_its_own(every, last):
  end, calls = End(9), []

  def stop(n, state, metrics):
    end.step = min(n + 1, end.step)

  device = Device()
  device.start = 0
  hooks = [Hook(every, stop), Hook(4, lambda n, state, metrics: calls.append(n), at_end=True)]
  assert fit(device.step, State(0), range(1, 10), ROOT, FROZEN, end, hooks) == State(last)
  assert calls == [n for n in range(1, last + 1) if n % 4 == 0 or n == last]


def test_the_host_waits_in_order():
  device = Device()
  device.fit(0, 20)
  assert device.waited == list(range(1, 21 - IN_FLIGHT))


def test_nothing_left_to_do():
  assert Device().fit(7, 7) == State(7)


@pytest.mark.parametrize("batches", [[1, 2], [1, 2, 3, 4]])
def test_a_batch_too_few_or_too_many_is_an_error(batches):
  with pytest.raises(ValueError, match="zip"):
    Device().fit(0, 3, batches=batches)


def test_metrics_are_waited_for_as_jax_does():
  assert jax.block_until_ready(Metrics(1, [])).waited == [1]


def test_changes_come_before_the_hooks_of_their_step():
  calls, device = [], Device()

  def change(n, state, batch):
    assert batch == state.step == n
    calls.append(("change", n))
    return Changed(state.step)

  class Changed(State):
    pass

  hook = Hook(1, lambda n, state, metrics: calls.append((type(state).__name__, n)))
  device.start = 0
  last = fit(device.step, State(0), range(1, 6), ROOT, FROZEN, End(5), [hook], [Change(2, change)])
  assert last == State(5) and type(last) is State, "the state that a change returns goes on"
  expected = [
    ("State", 1),
    ("change", 2),
    ("Changed", 2),
    ("State", 3),
    ("change", 4),
    ("Changed", 4),
    ("State", 5),
  ]
  assert calls == expected
