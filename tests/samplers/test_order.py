"""Order of convergence, each row of tests/samplers/orders.py on its closed forms."""

import pytest

from jldm.diffusion.process import Cosine, Flow
from tests.samplers.gaussian import measured_order
from tests.samplers.orders import DETERMINISTIC, on_gaussian, on_mixture, tolerance


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_on_a_gaussian(name):
  row = DETERMINISTIC[name]
  low, high = tolerance(row.order)
  assert low < on_gaussian(Cosine(), row) < high


@pytest.mark.slow
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_on_a_mixture(name):
  row = DETERMINISTIC[name]
  low, high = tolerance(row.order)
  assert low < on_mixture(Cosine(), row) < high


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, row in DETERMINISTIC.items() if row.order <= 2 and not row.warm])
def test_upward_and_on_the_flow_process(name):
  row = DETERMINISTIC[name]
  low, high = tolerance(row.order)
  assert low < measured_order(Flow(), row.sampler, low=4.0, high=-4.0) < high


def test_lower_order_beginnings_are_seen():
  """Why orders above 2 are measured from exact history."""
  row = DETERMINISTIC["DEIS-4, LMS"]
  assert measured_order(Cosine(), row.sampler) < 3
