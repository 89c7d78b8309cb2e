"""Samplers and guidance rules by name, for the command line; in Python and in configs they are objects.

Text such as "Churn(Heun(), gamma=0.1)" is parsed and looked up in a closed table, never executed.
"""

import dataclasses
import functools
import inspect
import math
from typing import Any

from jldm.config.experiment import Sampling
from jldm.config.override import parse_object
from jldm.config.ranges import check_ranges
from jldm.config.registry import registered_classes, role_of_class
from jldm.core.errors import UserError
from jldm.samplers.ancestral import Ancestral
from jldm.samplers.clock import Line
from jldm.samplers.consistency import Consistency
from jldm.samplers.ddim import DDIM
from jldm.samplers.deis import DEIS, PNDM
from jldm.samplers.dpm_solver import DPMSolverPP, DPMSolverPPSingle
from jldm.samplers.grid import Grid
from jldm.samplers.guidance import APG, CFGPlusPlus, CFGZero, ClassifierFree, FirstChannels, Interval, Rescale
from jldm.samplers.heun import Heun
from jldm.samplers.runge_kutta import RK4
from jldm.samplers.sample import Sampler
from jldm.samplers.unipc import UniPC

SAMPLER_CLASSES, CLOCKS, GRID_CLASSES = role_of_class(DDIM), role_of_class(Line), role_of_class(Grid)
SAMPLERS = {  # short names; any other choice is written out, such as DPMSolverPP(3, exact_d2=True)
  "ddim": DDIM,
  "ddpm": Ancestral,
  "deis": DEIS,
  "dpmpp_2m": DPMSolverPP,
  "dpmpp_2m_sde": lambda eta=1.0: DPMSolverPP(2, eta),
  "dpmpp_2s": DPMSolverPPSingle,
  "dpmpp_3m": lambda eta=0.0: DPMSolverPP(3, eta, lower_order_final=True),
  "dpmpp_3m_sde": lambda eta=1.0: DPMSolverPP(3, eta, lower_order_final=True),
  "euler": lambda: DDIM(),
  "euler_ancestral": lambda eta=1.0: DDIM(eta),
  "heun": Heun,
  "ipndm": lambda: PNDM("none"),
  "lcm": Consistency,
  "lms": lambda: DEIS(4),
  "pndm": PNDM,
  "rk4": RK4,
  "unipc": UniPC,
}
GUIDANCE = {  # name -> the rule for a scale
  "cfg": ClassifierFree,
  "cfg_pp": lambda scale: CFGPlusPlus(ClassifierFree(scale)),
  "apg": APG,
  "cfg_zero": CFGZero,
}


def make_sampler(name: str, **choices: float) -> Any:
  """A sampler by name, or written as in Python: "Churn(Heun(), gamma=0.1)"; `choices` replace its fields.

  Raises:
    UserError: an unknown name, a field that this sampler does not have, or a value out of its range.
  """
  if "(" in name:
    sampler = parse_object(
      name,
      "sampler",
      {cls.__name__: cls for cls in (*SAMPLER_CLASSES, *CLOCKS)} | registered_classes(Sampler),
    )
    check_sampler(name, sampler)
    unknown = set(choices) - set(inspect.signature(type(sampler)).parameters)
    make = functools.partial(dataclasses.replace, sampler)
  elif name in SAMPLERS:
    unknown, make = set(choices) - set(inspect.signature(SAMPLERS[name]).parameters), SAMPLERS[name]
  else:
    raise UserError(
      f"sampler={name!r}; expected one of {sorted(SAMPLERS)}, or one written out such as DPMSolverPP(3)"
    )
  if unknown:
    raise UserError(
      f"sampler {name!r} has no {', '.join(sorted(unknown))}; leave it out or choose another sampler"
    )
  sampler = make(**choices)
  check_sampler(name, sampler)
  return sampler


def check_sampler(name: str, sampler: Any) -> None:
  """Raises a UserError unless an object, and what it wraps, are samplers with legal numbers."""
  if type(sampler) not in (*SAMPLER_CLASSES, *registered_classes(Sampler).values()):
    raise UserError(
      f"sampler={name!r} is not a sampler, or wraps none; expected one such as Churn(Heun(), gamma=0.1)"
    )
  for field in dataclasses.fields(sampler):
    value = getattr(sampler, field.name)
    if field.name == "sampler":
      check_sampler(name, value)
    if field.name == "clock" and type(value) not in CLOCKS:
      raise UserError(f"clock={value!r} of sampler {name!r}; expected Line() or Ratio()")
  check_ranges(sampler, f"sampler {name}")


def make_grid(name: str) -> Any:
  """A grid by name, or written as in Python: "Timesteps('linspace', dropped=1)".

  Raises:
    UserError: an unknown name, or an object that is no grid.
  """
  if "(" not in name:
    return Grid(name)
  grid = parse_object(name, "grid", {cls.__name__: cls for cls in GRID_CLASSES})
  if type(grid) not in GRID_CLASSES:
    raise UserError(f"grid={name!r} is no grid; expected one such as Timesteps('linspace', dropped=1)")
  check_ranges(grid, f"grid {name}")
  return grid


def override_sampling(
  sampling: Sampling,
  sampler: str | None = None,
  steps: int | None = None,
  grid: str | None = None,
  eta: float | None = None,
  guidance: Any = None,
) -> Sampling:
  """`sampling` with the given fields replaced; UserError for illegal names and numbers."""
  choices = {} if eta is None else {"eta": eta}
  if choices and sampler is None and sampling.sampler is None:
    raise UserError(f"eta={eta} without a sampler; name one that has it, such as --sampler ddim")
  made = make_sampler(sampler, **choices) if sampler else replace_fields(sampling.sampler, **choices)
  changes = {"sampler": made, "steps": steps, "grid": grid and make_grid(grid), "guidance": guidance}
  changed = dataclasses.replace(
    sampling, **{name: value for name, value in changes.items() if value is not None}
  )
  if changed.steps < 1:
    raise UserError(f"steps={changed.steps}; expected at least 1")
  return changed


def replace_fields(sampler: Any, **choices: float) -> Any:
  """The sampler with other numbers; UserError if it does not have them or they are out of range."""
  if not choices:
    return sampler
  name = sampler_name(sampler)
  if unknown := set(choices) - {field.name for field in dataclasses.fields(sampler)}:
    raise UserError(
      f"sampler {name!r} has no {', '.join(sorted(unknown))}; leave it out or choose another sampler"
    )
  made = dataclasses.replace(sampler, **choices)
  check_sampler(name, made)
  return made


def sampler_name(sampler: Any) -> str:
  """The short name of a sampler, or its repr if it has none."""
  return next((name for name, make in SAMPLERS.items() if make() == sampler), repr(sampler))


def sampling_to_dict(sampling: Sampling) -> dict[str, Any]:
  """A sampling as JSON data, with the names of the command line."""
  rule, grid = sampling.guidance, sampling.grid
  guidance = (
    {"guidance_scale": rule.guidance_scale} if isinstance(rule, ClassifierFree) else {"guidance": repr(rule)}
  )
  further = {"transforms": repr(sampling.transforms)} if sampling.transforms else {}
  return (
    {
      "sampler": sampler_name(sampling.sampler),
      "steps": sampling.steps,
      "grid": grid.timestep_spacing if isinstance(grid, Grid) else repr(grid),
    }
    | guidance
    | further
  )


def guidance_text(described: dict[str, Any]) -> str:
  """The guidance of `sampling_to_dict` as text for a line of output."""
  return (
    f"guidance {described['guidance_scale']:g}" if "guidance_scale" in described else described["guidance"]
  )


def make_guidance(
  name: str = "cfg",
  scale: float = 1.0,
  interval: tuple[float, float] | None = None,
  rescale: float | None = None,
  channels: int | None = None,
) -> Any:
  """A guidance rule by name.

  interval: the two log SNR between which guidance is used; None is everywhere.
  rescale: 0 to 1, how far the std of x0 is brought back to that of the conditional prediction.
  channels: how many of the first channels are guided; None or 0 is all.

  Raises:
    UserError: an unknown name, a scale of cfg_pp or a share outside [0, 1], an interval that ends
      before it starts, or a negative number of channels.
  """
  if name not in GUIDANCE:
    raise UserError(f"guidance={name!r}; expected one of {sorted(GUIDANCE)}")
  if not math.isfinite(scale) or (name == "cfg_pp" and not 0 <= scale <= 1):
    raise UserError(
      f"guidance_scale={scale} of {name}; expected {'0 to 1' if name == 'cfg_pp' else 'a finite number'}"
    )
  if rescale is not None and not 0 <= rescale <= 1:
    raise UserError(f"rescale={rescale}; expected a share from 0 to 1")
  if interval is not None and not -math.inf < interval[0] <= interval[1] < math.inf:
    raise UserError(f"interval={tuple(interval)}; expected two finite log SNR, the lower first")
  rule = GUIDANCE[name](scale)
  if rescale is not None:  # of what x0 is guided to, hence within CFGPlusPlus, which changes eps
    rule = CFGPlusPlus(Rescale(rule.rule, rescale)) if name == "cfg_pp" else Rescale(rule, rescale)
  rule = rule if interval is None else Interval(rule, *interval)
  if channels is not None and channels < 0:
    raise UserError(f"channels={channels} of guidance; expected the first of them, at least 1, or 0 for all")
  return FirstChannels(rule, channels) if channels else rule
