"""A network, its parameters, its conditions and a guidance rule bound into one denoiser: the only place where they meet."""

from collections.abc import Sequence
from typing import Any

import jax

from jldm.core.specs import Output
from jldm.diffusion.target import Denoised, denoiser
from jldm.models.conditioners.conditioner import Conditions, join
from jldm.samplers.guidance import Rule, guided
from jldm.samplers.sample import Denoise

Array = jax.Array


def bind(objective: Any, params: Any, branches: Sequence[Conditions], rule: Rule | None = None) -> Denoise:
  """denoise(z, t, estimate=None, to=None) of an objective's network under K branches of conditions.

  params: {"denoiser": …, a conditioner's name: …}.
  branches: the conditions themselves first, then what guidance is set against; a single one is not guided.
  The estimate of x0 reaches a network that was trained with self-conditioning, and `to` one that is sampled with it.
  """
  inputs = [join(branch) for branch in branches]

  def denoise(z: Array, t: Array, given: dict, estimate: Array | None = None, to: Array | None = None) -> Denoised:
    def apply(z: Array, noise_level: Array, estimate: Array | None, to: Array | None) -> Output:
      full = given if to is None else given | {"to": to}
      shown = estimate if objective.self_conditioning else None
      return objective.network.apply({"params": params["denoiser"]}, z, noise_level, full, shown)

    return denoiser(objective.process, objective.parametrization, apply)(z, t, estimate, to)

  if len(inputs) == 1 or rule is None:
    return lambda z, t, estimate=None, to=None: denoise(z, t, inputs[0], estimate, to)
  return guided(objective.process, denoise, inputs, rule)
