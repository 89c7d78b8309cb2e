"""Guidance by several conditions, each with its own scale.

With e_0 the prediction under all conditions and e_i the one without the first i of them,

  (1)  e_K + scale_1 (e_0 - e_1) + scale_2 (e_1 - e_2) + … + scale_K (e_(K-1) - e_K)

which is eq. 3 of Brooks et al. 2022 (2211.09800) for two.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.trees import choice, pytree
from jldm.diffusion.process import Process
from jldm.diffusion.target import Denoised

Array = jax.Array


@pytree
@dataclasses.dataclass(frozen=True)
class PerConditioner:
  """Equation (1): PerConditioner(("label", "masked"), (2.0, 1.5)); scales are traced, [] or [B] each.

  Raises:
    UserError: not one scale per name.
  """

  names: tuple[str, ...] = choice(("label",))
  guidance_scales: tuple[Any, ...] = (1.0,)

  def __post_init__(self):
    if len(self.names) != len(self.guidance_scales) or not self.names:
      raise UserError(
        f"names={self.names} and guidance_scales={self.guidance_scales}; "
        "expected one scale per name of a conditioner"
      )

  def __call__(self, process: Process, z: Array, t: Array, each: Denoised) -> Denoised:
    scales = jnp.stack([jnp.broadcast_to(scale, z.shape[:1]) for scale in self.guidance_scales], 1)  # [B, K]
    one = jnp.ones_like(scales[:, :1])
    weights = jnp.concatenate([scales, one], 1) - jnp.concatenate([0 * one, scales], 1)  # [B, K + 1]
    mix = lambda e: jnp.einsum("bk,bk...->b...", weights, e, precision="highest")
    return Denoised(mix(each.x0), mix(each.eps))
