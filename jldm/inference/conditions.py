"""Converts the conditions of a request to the branches of guidance.

Branch 0 has the given conditions.  Each further branch has what guidance pushes away from: another value
of the request, or the null of a conditioner.  All branches have the same arrays, with a flag per sample
whether they are used, so that one program serves every request.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.specs import Loaded
from jldm.diffusion.target import refuse_held
from jldm.inference.model import Model
from jldm.models.codecs.codec import encode_mean
from jldm.models.conditioners.conditioner import (
  Conditioner,
  Conditions,
  Inputs,
  blank_inputs,
  select_per_sample,
)
from jldm.models.conditioners.part import Part
from jldm.samplers.per_conditioner import PerConditioner

Array = jax.Array


class Branch(NamedTuple):
  """Inputs by conditioner [B, ...], the first branch's where it has none of its own, and whether they
  are used, bool [B].
  """

  inputs: dict[str, Inputs]
  use: dict[str, Array]


def make_branches(
  model: Model, given: Mapping[str, Any], against: Sequence[Mapping[str, Any]], n: int
) -> tuple[Branch, ...]:
  """Branches of n samples, on the host.  Parts of the latents that are named are held, None of them as
  noise; others are drawn.

  given: by the conditioner's name, as its `read_request` takes it; one value for all samples or one each.
  against: one dict for each further branch.  None is null; what is not named is null if the
    conditioner is guided, and as given if it is not.

  Raises:
    UserError: a name that the model does not know, a value that is not legal or not one per sample,
      or nothing for a conditioner without which the model was never trained.
  """
  named = {name for each in (given, *against) for name in each}
  conditioners = known_conditioners(model, named)
  for name in named - conditioners.keys():
    known = ", ".join([*conditioners, *(name for name in model.parts if name not in conditioners)])
    raise UserError(
      f"{name!r} is given, and the model knows {known or 'nothing: it was trained without conditions'}"
    )
  for name, conditioner in conditioners.items():
    if given.get(name) is None and not conditioner.dropout:
      raise UserError(
        f"this model was always trained with {name!r}, {type(conditioner).__name__}, and cannot sample "
        f"without; "
        f"give it: Request(given={{{name!r}: …}})"
      )
  values = {name: given.get(name, each.default_request(model.data)) for name, each in conditioners.items()}
  first = make_branch(model, values, n, conditioners)
  guided = any(each.guided and values[name] is not None for name, each in conditioners.items())
  if not guided and not any(against):
    return (first,)
  away = {name: None if each.guided else values[name] for name, each in conditioners.items()}
  others = [away | dict(each) for each in against]
  with_inputs = lambda other: [
    name for name, each in conditioners.items() if needs_inputs(each, other[name], values[name])
  ]
  return (first, *(make_branch(model, other, n, with_inputs(other)) for other in others))


def known_conditioners(model: Model, names: Iterable[str]) -> dict[str, Conditioner]:
  """The model's conditioners, and one for each part of its latents in `names`, which is held and not drawn.

  Raises:
    UserError: a conditioner has the name of a part.
  """
  if both := model.conditioners.keys() & model.parts.keys():
    raise UserError(
      f"{min(both)!r} is a part of the latents and a conditioner; give the conditioner another name"
    )
  parts = {name: Part(name=name, fields=codec.fields) for name, codec in model.parts.items() if name in names}
  return model.conditioners | parts


def check_held(model: Model, given: Sequence[Branch]) -> None:
  """Raises a UserError if parts of the latents are held at times at which the model says nothing."""
  uses = [one.use[name] for one in given for name in model.parts if name in one.use]
  if uses:
    times = [0.0] * any(use.any() for use in uses) + [1.0] * any(not use.all() for use in uses)
    refuse_held(model.process, model.objective.parametrization, np.float32(times))


def needs_inputs(conditioner: Conditioner, other: Any, value: Any) -> bool:
  """Whether a further branch needs inputs besides those of the first branch, whose value is `value`.

  The null of a guided conditioner does, so that a null and a negative condition compile to one program.
  Another null does not.
  """
  return conditioner.guided if other is None else other is not value


def make_branch(model: Model, values: Mapping[str, Any], n: int, names: Iterable[str]) -> Branch:
  """One branch: `values` by conditioner, None for null, with inputs for the conditioners `names`."""
  inputs = {}
  for name in names:
    conditioner, value = known_conditioners(model, (name,))[name], values[name]
    arrays = (
      blank_inputs(conditioner, model.data) if value is None else conditioner.read_request(value, model.data)
    )
    inputs[name] = {key: for_each_sample(name, array, n) for key, array in arrays.items()}
  return Branch(inputs, {name: np.full(n, value is not None) for name, value in values.items()})


def for_each_sample(name: str, array: Any, n: int) -> np.ndarray:
  """[1 or n, ...] -> [n, ...]; UserError for another number."""
  array = np.asarray(array)
  if len(array) not in (1, n):
    raise UserError(f"{len(array)} values of {name!r} for {n} samples; expected one, or one per sample")
  return np.broadcast_to(array, (n, *array.shape[1:]))


def branches_per_conditioner(
  model: Model, rule: PerConditioner, given: Mapping[str, Any], negative: Mapping[str, Any]
) -> list[dict]:
  """The further branches of a rule with a scale per conditioner: the first i of its names are null, or
  what `negative` says.

  Raises:
    UserError: a conditioner that the model does not know, or without which it was never trained.
  """
  able = [name for name, each in model.conditioners.items() if each.dropout]
  for name in rule.names:
    if name not in able:
      raise UserError(
        f"guidance by {name!r}: the model was trained both with and without {', '.join(able) or 'nothing'}; "
        "expected one of those, or train with a dropout of the conditioner"
      )
  values = {name: given.get(name) for name in model.conditioners}
  nulls = [(name, negative.get(name)) for name in rule.names]
  return [values | dict(nulls[: i + 1]) for i in range(len(nulls))]


def embed_branches(model: Model, params: dict, given: Sequence[Branch]) -> list[Conditions]:
  """The network's conditions in each branch; within jit, before the scan.  Shared inputs are embedded
  once.

  They are in the order of the model's conditioners, as in training; jit sorts a dict that passes it.
  """
  encode = functools.partial(encode_mean, Loaded(model.codec, params["codec"]))
  conditioners = known_conditioners(model, given[0].inputs)
  call = lambda name, inputs: conditioners[name].embed(params.get(name, {}), inputs, encode)
  first = {name: call(name, given[0].inputs[name]) for name in conditioners if name in given[0].inputs}
  conditions = []
  for one in given:
    fresh = first | {name: call(name, inputs) for name, inputs in one.inputs.items() if one is not given[0]}
    null = {name: conditioners[name].null(params.get(name, {}), value) for name, value in fresh.items()}
    conditions.append(
      {
        name: select_per_sample(jnp.asarray(one.use[name]), value, null[name])
        for name, value in fresh.items()
      }
    )
  return conditions
