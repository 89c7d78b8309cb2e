"""The timesteps of diffusers' schedulers as a grid, so that a published pipeline steps as it does there."""

import dataclasses

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.diffusion.process import Process
from jldm.samplers.grid import leading, linspace, strided, trailing
from jldm.samplers.pairs import adjacent_pairs

Array = jax.Array
SPACINGS = ("leading", "linspace", "trailing")


@dataclasses.dataclass(frozen=True)
class Timesteps:
  """Knots of a chain of betas, Lin et al. 2024 (2305.08891), table 2: called as a Grid.

  timestep_spacing: one of SPACINGS.   steps_offset: added to leading timesteps; Stable Diffusion has 1.
  dropped: knots at the clean end that are made and left out; DPM-Solver and UniPC have 1.
  rounded: whether linspace is rounded to knots; Euler's, Heun's and LMS's is not.
  strided: whether a step goes down by T // steps knots, wherever the next begins, as DDIM's and PNDM's.
  set_alpha_to_one: whether the last step ends at clean data, and not at the first knot.

  Raises:
    UserError: another spacing; when called, what the functions of `grid` raise.
  """

  timestep_spacing: str = "leading"
  steps_offset: int = 0
  dropped: int = 0
  rounded: bool = True
  strided: bool = False
  set_alpha_to_one: bool = True

  def __post_init__(self):
    if self.timestep_spacing not in SPACINGS:
      raise UserError(f"timestep_spacing={self.timestep_spacing!r}; expected one of {', '.join(SPACINGS)}")

  def __call__(self, process: Process, steps: int) -> Array:
    times = {
      "leading": lambda: leading(process, steps, self.steps_offset, self.dropped),
      "linspace": lambda: linspace(process, steps, self.dropped, self.rounded),
      "trailing": lambda: trailing(process, steps),
    }[self.timestep_spacing]()
    last = 0.0 if self.set_alpha_to_one else 1 / process.num_train_timesteps
    if self.strided:
      return strided(process, times, last)
    return adjacent_pairs(jnp.asarray(times).at[-1].set(last))
