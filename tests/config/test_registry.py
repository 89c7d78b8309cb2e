"""The table of classes that an experiment is made of."""

import dataclasses

from jldm.config.registry import register
from tests.config.examples import Pair, refused


def test_registering_twice_is_nothing_and_another_class_of_that_name_is_refused(registered):
  assert register(Pair) is Pair
  another = dataclasses.make_dataclass("Pair", [], frozen=True)
  assert "another class named 'Pair' is registered" in refused(register, another)
