"""Samplers and guidance by the names of the command line."""

import pytest

from jldm.config import presets
from jldm.core.errors import UserError
from jldm.samplers import guidance
from jldm.samplers.churn import Churn
from jldm.samplers.clock import Ratio
from jldm.samplers.dpm_solver import DPMSolverPP
from jldm.samplers.grid import Grid
from jldm.samplers.heun import Heun
from jldm.samplers.timesteps import Timesteps


def test_guidance_by_name():
  assert presets.make_guidance("cfg_zero", 3) == guidance.CFGZero(3)
  assert presets.make_guidance("apg", 3, rescale=0.5) == guidance.Rescale(guidance.APG(3), 0.5)
  plus_plus = guidance.CFGPlusPlus(guidance.Rescale(guidance.ClassifierFree(0.7), 0.5))
  assert presets.make_guidance("cfg_pp", 0.7, (-5, 5), 0.5) == guidance.Interval(plus_plus, -5, 5)


def test_samplers_by_name_and_written_out():
  assert all(hasattr(presets.make_sampler(name), "step") for name in presets.SAMPLERS)
  assert presets.make_sampler("dpmpp_2m_sde") == DPMSolverPP(2, eta=1.0)
  assert presets.make_sampler("DPMSolverPP(3, exact_d2=True)", eta=0.5) == DPMSolverPP(3, 0.5, exact_d2=True)
  assert presets.make_sampler("Churn(Heun(Ratio()), gamma=0.1)") == Churn(Heun(Ratio()), 0.1)


def test_grids_by_name_and_written_out():
  assert presets.make_grid("karras") == Grid("karras")
  assert presets.make_grid("Timesteps('linspace', dropped=1)") == Timesteps("linspace", dropped=1)


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: presets.make_sampler("dimm"), "sampler='dimm'; expected one of ['ddim', 'ddpm', 'deis',"),
    (lambda: presets.make_sampler("heun", eta=1.0), "sampler 'heun' has no eta"),
    (lambda: presets.make_sampler("Heun()", eta=1.0), "sampler 'Heun()' has no eta"),
    (lambda: presets.make_sampler("Heum()"), "sampler: no class 'Heum'; did you mean 'Heun'?"),
    (lambda: presets.make_sampler("Ratio()"), "sampler='Ratio()' is not a sampler, or wraps none"),
    (lambda: presets.make_sampler("Churn(Ratio())"), "sampler=Ratio() of Churn; expected one like Heun("),
    (lambda: presets.make_sampler("exit(1)"), "sampler: no class 'exit'"),
    (lambda: presets.make_sampler("DPMSolverPP(7)"), "order=7; expected 1 to 3"),
    (lambda: presets.make_sampler("DPMSolverPP(order=2.5)"), "order=2.5"),
    (lambda: presets.make_grid("spirals"), "grid='spirals'; expected one of ['align_your_steps', 'beta',"),
    (
      lambda: presets.make_grid("Timesteps('spirals')"),
      "timestep_spacing='spirals'; expected one of leading",
    ),
    (lambda: presets.make_grid("Timesteps(dropped=-1)"), "dropped=-1"),
    (
      lambda: presets.make_grid("('karras')"),
      "grid=\"('karras')\" is no grid; expected one such as Timesteps",
    ),
    (lambda: presets.make_grid("exit(1)"), "grid: no class 'exit'"),
    (lambda: presets.make_sampler("(DDIM()"), "expected an object written as in Python"),
  ],
)
def test_mistakes(call, message):
  with pytest.raises(UserError) as error:
    call()
  assert message in str(error.value) and "\n" not in str(error.value)
