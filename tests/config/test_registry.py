"""The table of classes that an experiment is made of."""

import dataclasses

from flax import nnx
import pytest

from jldm.config.registry import CLASSES, register
from tests.config.examples import Pair, refused


def test_registering_twice_is_nothing_and_another_class_of_that_name_is_refused(registered):
  assert register(Pair) is Pair
  another = dataclasses.make_dataclass("Pair", [], frozen=True)
  assert "another class named 'Pair' is registered" in refused(register, another)
  assert CLASSES["Pair"] is Pair


def test_a_class_whose_module_runs_again_takes_the_place_of_the_former(registered):
  """As in a notebook, whose cell is run twice."""
  again = dataclasses.make_dataclass("Pair", [], frozen=True)
  again.__module__ = Pair.__module__
  assert register(again) is again and CLASSES["Pair"] is again


@dataclasses.dataclass
class Mutable:
  width: int = 3


@pytest.mark.parametrize("cls", [Mutable, nnx.Linear, type("Plain", (), {}), Mutable()])
def test_what_cannot_stand_in_an_experiment_is_not_registered(registered, cls):
  name = cls.__name__ if isinstance(cls, type) else "Mutable"
  text = refused(register, cls)
  assert name in text and "frozen dataclass" in text and "flax.linen Module" in text
  assert cls not in CLASSES.values()
