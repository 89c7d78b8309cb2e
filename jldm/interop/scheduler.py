"""Reads a scheduler_config.json of diffusers: the forward process, and what the network predicts.

It stands beside a denoiser's folder.  The config of the network itself says neither: the U-Nets of Stable
Diffusion 2.1 and of its base version have equal configs, and predict v and eps.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jldm.core.errors import UserError
from jldm.diffusion.process import Betas, CosineBetas, Discrete, LinearBetas, ScaledLinearBetas
from jldm.diffusion.target import Predict
from jldm.interop.config import config_choice, config_flag, config_number, config_value
from jldm.interop.locate import parse_config
from jldm.samplers.ancestral import Ancestral
from jldm.samplers.clock import Ratio
from jldm.samplers.ddim import DDIM
from jldm.samplers.deis import DEIS, PNDM
from jldm.samplers.dpm_solver import SOLVER_TYPES, DPMSolverPP
from jldm.samplers.grid import Grid
from jldm.samplers.heun import Heun
from jldm.samplers.timesteps import SPACINGS, Timesteps
from jldm.samplers.unipc import UniPC

FILE = "scheduler_config.json"
MOST_STEPS = 2**16
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETAS = {"linear": LinearBetas, "scaled_linear": ScaledLinearBetas}
COSINE = "squaredcos_cap_v2"


def dpm_solver(config: Mapping[str, Any]) -> DPMSolverPP:
  algorithm = config_choice(config, "algorithm_type", ALGORITHMS[0], ALGORITHMS)
  return DPMSolverPP(
    config_number(config, "solver_order", 2, 3),
    float(algorithm != ALGORITHMS[0]),
    config_choice(config, "solver_type", "midpoint", SOLVER_TYPES),
  )


class Scheduler(NamedTuple):
  """A scheduler of diffusers as ours: (its config) -> sampler, and how it makes its timesteps.

  fields: the inverse of `sampler`, what its config says of a sampler.
  """

  sampler: Callable[[Mapping[str, Any]], Any]
  timestep_spacing: str = "linspace"  # by default
  dropped: int = 0
  rounded: bool = True
  strided: bool = False
  set_alpha_to_one: bool = True  # by default
  fields: Callable[[Any], dict[str, Any]] = lambda sampler: {}


def dpm_fields(sampler: DPMSolverPP) -> dict[str, Any]:
  algorithm = ALGORITHMS[1 if sampler.eta else 0]
  return {"algorithm_type": algorithm, "solver_order": sampler.order, "solver_type": sampler.solver_type}


SCHEDULERS = {
  "DDIMScheduler": Scheduler(lambda config: DDIM(), "leading", strided=True),
  "DDPMScheduler": Scheduler(lambda config: Ancestral(), "leading"),
  "DPMSolverMultistepScheduler": Scheduler(dpm_solver, dropped=1, fields=dpm_fields),
  "EulerAncestralDiscreteScheduler": Scheduler(lambda config: DDIM(1.0), rounded=False),
  "EulerDiscreteScheduler": Scheduler(lambda config: DDIM(), rounded=False),
  "HeunDiscreteScheduler": Scheduler(lambda config: Heun(Ratio()), rounded=False),
  "LMSDiscreteScheduler": Scheduler(lambda config: DEIS(4), rounded=False),
  "PNDMScheduler": Scheduler(
    lambda config: PNDM("plms" if config_flag(config, "skip_prk_steps", False) else "prk"),
    "leading",
    strided=True,
    set_alpha_to_one=False,
    fields=lambda sampler: {"skip_prk_steps": sampler.warmup == "plms"},
  ),
  "UniPCMultistepScheduler": Scheduler(
    lambda config: UniPC(config_number(config, "solver_order", 2, 3)),
    dropped=1,
    fields=lambda sampler: {"solver_order": sampler.order},
  ),
}
SIGMAS = ("karras", "exponential")  # use_karras_sigmas, …: names of grids
ALGORITHMS = ("dpmsolver++", "sde-dpmsolver++")


def read_sampling(path: Path) -> tuple[Any, Any]:
  """The sampler and the grid of a scheduler's file.

  Raises:
    UserError: a scheduler that is none of SCHEDULERS, or numbers that are not legal.
  """
  config = read_object(path)
  kind = config_choice(config, "_class_name", "", SCHEDULERS)
  found = SCHEDULERS[kind]
  sampler = found.sampler(config)
  if named := [name for name in SIGMAS if config_flag(config, f"use_{name}_sigmas", False)]:
    return sampler, Grid(named[0])
  config_choice(config, "use_beta_sigmas", False, (False,))
  to_zero = config_choice(config, "final_sigmas_type", "zero", ("zero", "sigma_min")) == "zero"
  # other schedulers keep the field of the one that a pipeline had before, and do not read it
  to_one = config_flag(config, "set_alpha_to_one", found.set_alpha_to_one) if found.strided else to_zero
  return sampler, Timesteps(
    config_choice(config, "timestep_spacing", found.timestep_spacing, SPACINGS),
    config_number(config, "steps_offset", 0, MOST_STEPS, least=0),
    found.dropped,
    found.rounded,
    found.strided,
    to_one,
  )


def scheduler_config(process: Any, parametrization: Any, sampler: Any, grid: Any) -> dict[str, Any]:
  """The config of a scheduler; the inverse of `read_scheduler` and `read_sampling`.

  A sampler or a grid that no scheduler has becomes DDIM with Stable Diffusion's timesteps.

  Raises:
    UserError: a process or a prediction that diffusers does not have.
  """
  predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
  if not isinstance(process, Discrete) or parametrization not in map(Predict, predictions):
    raise UserError(
      f"process {process} of {parametrization}; expected a Discrete process and one of "
      f"{', '.join(predictions)}: schedulers of diffusers have no other"
    )
  kind = next((name for name, each in SCHEDULERS.items() if matches(each, sampler, grid)), None)
  found = SCHEDULERS[kind or "DDIMScheduler"]
  spaced = grid if kind else Timesteps("leading", 1, strided=True, set_alpha_to_one=False)
  last = {"set_alpha_to_one": spaced.set_alpha_to_one} if found.strided else {}
  return {
    "_class_name": kind or "DDIMScheduler",
    "_diffusers_version": "0.42.0",
    **betas_of(process),
    "prediction_type": predictions[parametrization.prediction_type],
    "rescale_betas_zero_snr": process.rescale_betas_zero_snr,
    "timestep_spacing": spaced.timestep_spacing,
    "steps_offset": spaced.steps_offset,
    "clip_sample": False,
    **last,
    **(found.fields(sampler) if kind else {}),
  }


def matches(found: Scheduler, sampler: Any, grid: Any) -> bool:
  """Whether a scheduler draws with this sampler on this grid."""
  if type(found.sampler({})) is not type(sampler) or not isinstance(grid, Timesteps):
    return False
  ours = (grid.dropped, grid.rounded, grid.strided, grid.set_alpha_to_one or found.strided)
  theirs = (found.dropped, found.rounded, found.strided, True)
  return found.sampler(found.fields(sampler)) == sampler and ours == theirs


def betas_of(process: Discrete) -> dict[str, Any]:
  """The inverse of `process_of`."""
  schedule = process.beta_schedule
  count = {"num_train_timesteps": schedule.num_train_timesteps}
  for name, kind in BETAS.items():
    if isinstance(schedule, kind):
      return count | {"beta_schedule": name, "beta_start": schedule.beta_start, "beta_end": schedule.beta_end}
  if schedule == CosineBetas(num_train_timesteps=schedule.num_train_timesteps):
    return count | {"beta_schedule": COSINE}
  return count | {"trained_betas": schedule.betas().tolist()}


def find_scheduler(folder: Path) -> Path | None:
  """The config of a pipeline's scheduler, in its folder, or beside the folder of a part."""
  places = (folder / "scheduler" / FILE, folder / FILE, folder.parent / "scheduler" / FILE)
  return next((place for place in places if place.is_file()), None)


def read_scheduler(path: Path) -> tuple[Discrete, Predict]:
  """The process and the parametrization of a file; UserError as `process_of` and `parametrization_of`."""
  config = read_object(path)
  return process_of(config), parametrization_of(config)


def read_object(path: Path) -> dict[str, Any]:
  """The config of a file; UserError for other JSON."""
  config = parse_config(path, "a scheduler's")
  if not isinstance(config, dict):
    raise UserError(f"{str(path)!r} is a {type(config).__name__}; expected a {FILE} of diffusers")
  return config


def parametrization_of(config: Mapping[str, Any]) -> Predict:
  """UserError for a prediction_type that is none of PREDICTIONS."""
  return Predict(PREDICTIONS[config_choice(config, "prediction_type", "epsilon", PREDICTIONS)])


def process_of(config: Mapping[str, Any]) -> Discrete:
  """UserError for betas that are not legal."""
  zero_snr = config_choice(config, "rescale_betas_zero_snr", False, (False, True))
  if (trained := config_value(config, "trained_betas", None)) is not None:
    return Discrete(
      Betas(tuple(fraction({"trained_betas": beta}, "trained_betas", 0) for beta in trained)), zero_snr
    )
  steps = config_number(config, "num_train_timesteps", 1000, MOST_STEPS)
  kind = config_choice(config, "beta_schedule", "linear", (*BETAS, COSINE))
  if kind == COSINE:
    return Discrete(CosineBetas(num_train_timesteps=steps), zero_snr)
  ends = fraction(config, "beta_start", 0.0001), fraction(config, "beta_end", 0.02)
  return Discrete(BETAS[kind](*ends, steps), zero_snr)


def fraction(config: Mapping[str, Any], name: str, default: float) -> float:
  value = config_value(config, name, default)
  if type(value) is not float or not 0 < value < 1:
    raise UserError(f"{FILE} has {name}={str(value)[:40]}; expected a number between 0 and 1")
  return value
