"""One denoiser from a network, its parameters, its conditions and a guidance rule.

This is the only place where they meet, and the only place that ravels latents in parts: a sampler sees
the parts that are drawn as one array [B, D].
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.keys import fold_each, normal_like
from jldm.core.shapes import expand
from jldm.core.specs import Output
from jldm.diffusion.process import Process
from jldm.diffusion.target import Denoised, denoiser
from jldm.models.conditioners.conditioner import Conditions, join_conditions
from jldm.samplers.guidance import Rule, guided
from jldm.samplers.sample import Denoise

Array = jax.Array
Held = dict[str, tuple[Array, Array, Array]]  # by part: value [B, ...], time [B], use bool [B]


def bind(
  objective: Any,
  params: Any,
  branches: Sequence[Conditions],
  rule: Rule | None = None,
  like: Any = None,
  keys: Array | None = None,
) -> Denoise:
  """denoise(z, t, estimate=None, to=None) of an objective's network under K branches of conditions.

  params: {"denoiser": …, a conditioner's name: …}.
  branches: the conditions first, then those that guidance pushes away from; a single one is not guided.
  like: the latents as shapes [B, ...], needed if they are a dict by part.  Parts in the input
    `held` are not drawn: each keeps its value at its own time, or is noise at time 1 if it is not
    used.  z is the ravel [B, D] of the other parts.
  keys: [B], of that noise.

  A network that was trained with self-conditioning gets the estimate of x0, and one that is sampled
  with `to` gets `to`.
  """
  process, inputs = objective.process, [join_conditions(branch) for branch in branches]
  if isinstance(like, dict):
    inputs = [given | {"held": with_noise(process, given.get("held", {}), keys)} for given in inputs]

  def predict(z: Any, t: Any, given: dict, estimate: Any = None, to: Array | None = None) -> Denoised:
    def apply(z: Any, noise_level: Any, estimate: Any, to: Array | None) -> Output:
      full = given if to is None else given | {"to": to}
      shown = estimate if objective.self_conditioning else None
      return objective.network.apply({"params": params["denoiser"]}, z, noise_level, full, shown)

    return denoiser(process, objective.parametrization, apply)(z, t, estimate, to)

  def predict_with_held(
    z: dict, t: Array, given: dict, estimate: dict | None = None, to: Array | None = None
  ) -> Denoised:
    """The prediction for the drawn parts z, with the held parts in their places."""
    held, given = given["held"], {name: value for name, value in given.items() if name != "held"}
    values, times = ({name: one[i] for name, one in held.items()} for i in (0, 1))
    known = {name: expand(use, value) * value for name, (value, _, use) in held.items()}
    whole = None if estimate is None else estimate | known
    denoised = predict(z | values, dict.fromkeys(z, t) | times, given, whole, to)
    drawn = lambda parts: parts and {name: parts[name] for name in z}
    return Denoised(drawn(denoised.x0), drawn(denoised.eps), drawn(denoised.variance))

  one = predict_with_held if isinstance(like, dict) else predict
  if len(inputs) == 1 or rule is None:
    denoise = lambda z, t, estimate=None, to=None: one(z, t, inputs[0], estimate, to)
  else:
    denoise = guided(process, one, inputs, rule)
  return raveled(denoise, drawn_parts(like, branches)) if isinstance(like, dict) else denoise


def with_noise(process: Process, held: Held, keys: Array | None) -> Held:
  """Held parts, with noise at time 1 for samples that do not use them.

  Raises:
    UserError: no keys.
  """
  if held and keys is None:
    raise UserError(
      f"parts {', '.join(held)} are held, and there are no keys of the noise of what is unknown; "
      "give keys [B]"
    )
  made = {}
  for i, (name, (value, time, use)) in enumerate(sorted(held.items())):
    noise = process.sigma(jnp.float32(1)) * normal_like(fold_each(keys, i), value)
    made[name] = (jnp.where(expand(use, value), value, noise), jnp.where(use, time, jnp.ones_like(time)), use)
  return made


def drawn_parts(like: Any, branches: Sequence[Conditions]) -> Any:
  """The shapes of the latents that are drawn: all, or the parts of a dict that no branch holds.

  Raises:
    UserError: every part is held, or an unknown one.
  """
  if not isinstance(like, dict):
    return like
  held = {name for branch in branches for name in join_conditions(branch).get("held", {})}
  if held - like.keys() or held == like.keys():
    raise UserError(
      f"parts {', '.join(sorted(held))} are held, of {', '.join(like)}; "
      "expected some of those, and one to draw"
    )
  return {name: part for name, part in like.items() if name not in held}


def raveled(denoise: Denoise, like: dict) -> Denoise:
  """A denoiser of parts as a denoiser of their ravel [B, D]; `like` has the shapes of the parts."""

  def flat(z: Array, t: Array, estimate: Array | None = None, to: Array | None = None) -> Denoised:
    denoised = denoise(unravel(z, like), t, None if estimate is None else unravel(estimate, like), to)
    return Denoised(*(part and ravel(part) for part in denoised))

  return flat


def ravel(parts: Any) -> Array:
  """Parts {name: [B, ...]} -> [B, D], in the order of their names; an array stays."""
  if not isinstance(parts, dict):
    return parts
  return jnp.concatenate([part.reshape(len(part), -1) for _, part in sorted(parts.items())], 1)


def unravel(z: Array, like: Any) -> Any:
  """The inverse of `ravel`, for parts in the shapes of `like`."""
  if not isinstance(like, dict):
    return z
  parts, start = {}, 0
  for name, shape in sorted(like.items()):
    width = shape.size // shape.shape[0]
    parts[name] = z[:, start : start + width].reshape(len(z), *shape.shape[1:])
    start += width
  return parts
