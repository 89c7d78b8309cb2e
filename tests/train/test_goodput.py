"""Every second is in one part, whatever is nested in what, and the parts add up."""

import types

import pytest

from jldm.train import goodput
from jldm.train.goodput import PARTS, Goodput
from jldm.train.loop import End, Hook, fit


@pytest.fixture
def now(monkeypatch):
  """A clock that is set by hand."""
  clock = [100.0]
  monkeypatch.setattr(goodput, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
  return clock


def seconds_of(clock: Goodput) -> dict[str, float]:
  line = clock.seconds_by_part()
  assert sum(line[f"seconds_{part}"] for part in PARTS) == pytest.approx(line["seconds"], abs=1e-2)
  return {part: line[f"seconds_{part}"] for part in PARTS if line[f"seconds_{part}"]}


def test_what_is_nested_is_of_the_inner_part(now):
  clock = Goodput(began=98.0)
  with clock.measure("step"):
    now[0] += 1
    with clock.measure("save"):
      now[0] += 4
      with clock.measure("evaluation"):
        now[0] += 8
      now[0] += 16
    now[0] += 32
  now[0] += 64
  assert seconds_of(clock) == {"start": 66, "step": 33, "save": 20, "evaluation": 8}
  now[0] += 1
  assert seconds_of(clock)["start"] == 67 and clock.seconds_by_part()["seconds"] == 128


def test_a_part_ends_with_what_it_raises(now):
  clock = Goodput(began=100.0)
  with pytest.raises(KeyError), clock.measure("encode"):
    now[0] += 1
    raise KeyError
  now[0] += 2
  assert seconds_of(clock) == {"encode": 1, "start": 2}
  with pytest.raises(ValueError, match="part='sleep'; expected one of"):
    clock.switch("sleep")


def test_a_loop_is_compilation_first_then_lost_then_step_and_waits_for_data(now):
  """A killed run had come to step 6, and its last checkpoint was of step 3."""
  clock = Goodput(began=100.0)

  def rows():
    for n in range(3, 9):
      now[0] += 0.25
      yield n

  def step(state, batch, root, frozen):
    now[0] += 100 if batch == 3 else 1
    return types.SimpleNamespace(step=batch + 1), {}

  def save(n, state, metrics):
    now[0] += 10

  with clock.measure("step"):
    hooks = (clock.hook("save", Hook(3, save)),)
    state = types.SimpleNamespace(step=3)
    fit(clock.steps(step, 3, made_before=6), state, clock.waiting(rows()), None, None, End(9), hooks)
  assert seconds_of(clock) == {"compile": 100, "data": 1.5, "lost": 2, "step": 3, "save": 20}


def test_the_first_second_is_that_of_the_process():
  clock = Goodput()
  assert (
    0
    < clock.seconds_by_part()["seconds"]
    == pytest.approx(clock.seconds_by_part()["seconds_start"], abs=1e-2)
  )
