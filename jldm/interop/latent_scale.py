"""How a config.json scales latents, as our mean and std, and back.

diffusers makes the latents of a denoiser of raw ones by

  (1)  (raw - shift_factor) scaling_factor   or   (raw - latents_mean) / latents_std scaling_factor

and ours are (raw - mean) / std.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jldm.core.errors import UserError, printable

MOST = 1e30  # of numbers in a config.json


def read_statistics(config: Mapping[str, Any], channels: int) -> tuple[np.ndarray, np.ndarray]:
  """Equation (1): mean and std [C] of raw latents.

  Raises:
    UserError: numbers that are none, not finite, or a scale that is not positive.
  """

  def vector(name: str, default: float) -> np.ndarray:
    value = default if config.get(name) is None else config[name]
    values = value if isinstance(value, (list, tuple)) else [value] * channels
    if len(values) != channels or not all(type(one) in (int, float) and abs(one) < MOST for one in values):
      raise UserError(
        f"config.json has {name}={printable(str(value)[:80])}; "
        f"expected a finite number, or {channels} of them"
      )
    return np.array(values, np.float64)

  scaling, std = vector("scaling_factor", 1.0), vector("latents_std", 1.0)
  if min(*scaling, *std) < 1 / MOST or max(std / scaling) > MOST:
    raise UserError(
      f"config.json has scaling_factor={scaling[0]} and latents_std={std.tolist()}; expected positive numbers"
    )
  mean = vector("shift_factor" if config.get("latents_mean") is None else "latents_mean", 0.0)
  return np.float32(mean), np.float32(std / scaling)


def statistics_of(
  arrays: Mapping[str, np.ndarray], channels: int, where: str
) -> tuple[np.ndarray, np.ndarray]:
  """`mean` and `std` [C] of a file that keeps them apart, as LightningDiT's latents_stats has them, of any
  shape of C values.

  Raises:
    UserError: one of them is missing, of another size, not finite, or a std is not positive.
  """
  found = {}
  for name in ("mean", "std"):
    value = arrays.get(name)
    if value is None or value.size != channels:
      has = "no" if value is None else f"{value.size} values of"
      raise UserError(f"{str(where)!r} has {has} {name}; expected {channels}, one per channel of the latents")
    found[name] = np.asarray(value, np.float32).reshape(channels)
  if not np.isfinite([*found["mean"], *found["std"]]).all() or found["std"].min() <= 0:
    raise UserError(
      f"{str(where)!r} has a std of {found['std'].min():g}; expected finite numbers, std above 0"
    )
  return found["mean"], found["std"]


def write_statistics(mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
  """Equation (1) the other way: one number where all channels share it."""
  shared = all(len(set(np.asarray(values).tolist())) == 1 for values in (mean, std))
  if not shared:
    return {
      "scaling_factor": 1.0,
      "latents_mean": np.asarray(mean).tolist(),
      "latents_std": np.asarray(std).tolist(),
    }
  shift = {"shift_factor": shortest(mean[0], np.float32)} if mean[0] else {}
  return {"scaling_factor": shortest(1 / np.float64(std[0]), lambda scaling: np.float32(1 / scaling))} | shift


def shortest(value: Any, kept: Callable[[float], Any]) -> float:
  """The shortest decimal that `kept` maps to the same number: 0.18215, not 0.18215000629425049."""
  return next(
    short for digits in range(1, 18) if kept(short := float(f"{value:.{digits}g}")) == kept(float(value))
  )
