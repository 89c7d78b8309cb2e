"""Order of convergence, each row of tests/samplers/orders.py on its closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.diffusion.process import Cosine, Flow
from jldm.samplers.ddim import DDIM
from jldm.samplers.deis import DEIS
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.grid import uniform
from jldm.samplers.heun import Heun
from jldm.samplers.pairs import adjacent_pairs
from jldm.samplers.runge_kutta import RK4
from jldm.samplers.unipc import UniPC
from tests.marks import slow_after
from tests.samplers.gaussian import flow, gaussian, measured_order, walk
from tests.samplers.orders import DETERMINISTIC, on_gaussian, on_mixture, tolerance


@pytest.mark.parametrize("name", slow_after(8, DETERMINISTIC))
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
@pytest.mark.parametrize(
  "name", [name for name, row in DETERMINISTIC.items() if row.order <= 2 and not row.warm]
)
def test_upward_and_on_the_flow_process(name):
  row = DETERMINISTIC[name]
  low, high = tolerance(row.order)
  assert low < measured_order(Flow(), row.sampler, low=4.0, high=-4.0) < high


@pytest.mark.parametrize(
  "sampler", [DDIM(), Heun(), DPMSolverPP(), DPMSolverPP(3), UniPC(3), DEIS(), RK4()], ids=repr
)
def test_upward_from_clean_data_is_at_least_first_order(sampler):
  """Where the first step leaves an infinite log SNR."""
  process, errors = Flow(), []
  with jax.enable_x64(True):
    z, keys = jnp.linspace(-2, 2, 9)[:, None], jax.random.split(jax.random.key(0), 9)
    for steps in (64, 256):
      reached = walk(process, gaussian, sampler, z, adjacent_pairs(uniform(steps, 0.0, 0.8)), keys)
      errors.append(float(jnp.abs(reached - flow(process, z, 0.0, 0.8)).max()))
  assert np.log(errors[0] / errors[1]) / np.log(4) > 0.85 and errors[1] < 0.05


def test_lower_order_beginnings_are_seen():
  """Why orders above 2 are measured from exact history."""
  row = DETERMINISTIC["DEIS-4, LMS"]
  assert measured_order(Cosine(), row.sampler) < 3
