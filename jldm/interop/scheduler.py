"""Reads a scheduler_config.json of diffusers: the forward process, and what the network predicts.

It stands beside a denoiser's folder.  The config of the network itself says neither: the U-Nets of Stable
Diffusion 2.1 and of its base version have equal configs, and predict v and eps.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jldm.core.errors import UserError
from jldm.diffusion.process import Betas, CosineBetas, Discrete, LinearBetas, ScaledLinearBetas
from jldm.diffusion.target import Predict
from jldm.interop.config import config_choice, config_number, config_value
from jldm.interop.locate import parse_config

FILE = "scheduler_config.json"
MOST_STEPS = 2**16
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
BETAS = {"linear": LinearBetas, "scaled_linear": ScaledLinearBetas}
COSINE = "squaredcos_cap_v2"


def find_scheduler(folder: Path) -> Path | None:
  """The config of a pipeline's scheduler, in its folder, or beside the folder of a part."""
  places = (folder / "scheduler" / FILE, folder / FILE, folder.parent / "scheduler" / FILE)
  return next((place for place in places if place.is_file()), None)


def read_scheduler(path: Path) -> tuple[Discrete, Predict]:
  """The process and the parametrization of a file; UserError as `process_of` and `parametrization_of`."""
  config = parse_config(path, "a scheduler's")
  if not isinstance(config, dict):
    raise UserError(f"{str(path)!r} is a {type(config).__name__}; expected a {FILE} of diffusers")
  return process_of(config), parametrization_of(config)


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
