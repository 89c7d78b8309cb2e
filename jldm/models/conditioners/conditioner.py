"""Conditioners: the inputs of a denoiser besides its noisy latents.

A conditioner turns a batch, or a user's request, into named inputs of the network:

  draw_inputs (training) or read_request  ->  embed, or null  ->  join_conditions

In training the network sees `null` for a share `dropout` of the examples, which is the other branch of
classifier-free guidance (Ho & Salimans 2022, 2207.12598).
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.core.keys import split_each
from jldm.core.shapes import expand
from jldm.core.specs import Spec, batch_shapes, key_shapes

Array = jax.Array
Inputs = dict[str, Array]  # of one conditioner, [B, ...] each
Conditions = dict[str, dict[str, Array]]  # by conditioner: inputs of the network
# fields of a batch, such as image [B, H, W, C] in [-1, 1] -> standardised latents
Encode = Callable[[Inputs], Any]

# the axis along which the inputs of several conditioners are concatenated
JOINED_AT = {"vector": -1, "concat": -1, "tokens": 1, "mask": 1}
HELD = "held"  # parts of the latents that are given: (value, time, use) by part
RESERVED = ("denoiser", "codec")  # other parts of the parameters have these names


class Settled(NamedTuple):
  """What a step needs of a tower whose outputs are cached: the null condition, [1, ...]."""

  null: dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioner:
  """The contract, with defaults for most conditioners.

  name: the key of its parameters, and of its value in a request.
  dropout: the share of examples in training whose condition is `null`; with 0 the model always
    needs the condition.
  guided: whether guidance pushes away from `null` if a request names nothing else.
  fields: the arrays of a batch that `draw_inputs` reads.
  cached: `embed` is computed once per example, and kept with the latents.
  kept_as: the dtype in which what `embed` gives is kept, if it is cached; the network sees float32.
  tower: a network that was trained elsewhere; `embed` and `null` take its parameters, frozen[name].

  Raises:
    UserError: a dropout outside [0, 1], or a reserved name.
  """

  name: str
  dropout: float = 0.1
  guided: bool = True

  fields = ()
  cached = False
  kept_as = "float32"
  tower = None

  def __post_init__(self):
    if not 0 <= self.dropout <= 1:
      raise UserError(f"dropout={self.dropout} of conditioner {self.name!r}; expected a share from 0 to 1")
    if self.name in RESERVED or not self.name.isidentifier():
      raise UserError(
        f"a conditioner named {self.name!r}; expected an identifier other than {', '.join(RESERVED)}"
      )

  def derived_spec(self) -> Spec:
    """The arrays that `derive` makes of an example."""
    return ()

  def derive(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Further arrays of a batch that the host computes before it is placed, such as ids of captions."""
    del batch
    return {}

  def draw_inputs(self, batch: dict, keys: Array) -> Inputs:
    """The inputs [B, ...] of a training batch; keys [B] are for random ones."""
    raise NotImplementedError

  def read_request(self, given: Any, data: Spec) -> Inputs:
    """The inputs of a request's value, on the host: arrays [n, ...] or [1, ...]; UserError if not legal."""
    raise NotImplementedError

  def default_request(self, data: Spec) -> Any:
    """What a request gives that does not name this conditioner, of data of these shapes; None is null."""
    del data

  def init(self, key: Array, inputs: Inputs) -> Any:
    """The parameters that are trained with the denoiser; {} for none."""
    del key, inputs
    return {}

  def embed(self, params: Any, inputs: Inputs, encode: Encode) -> dict[str, Array]:
    """Inputs -> inputs of the network: label, vector, concat, tokens, mask, ..."""
    raise NotImplementedError

  def null(self, params: Any, like: dict[str, Array]) -> dict[str, Array]:
    """The network's inputs for an unknown condition, in the shapes of `like`; zeros by default."""
    del params
    return jax.tree.map(jnp.zeros_like, like)

  def check_tower(self, network: Any) -> None:
    """Raises a UserError unless an imported network is `tower`."""

  def settle(self, params: Any) -> Settled:
    """The parameters of `tower` as `null` needs them in training, when `embed` is cached."""
    raise NotImplementedError


def check_names(conditioners: Sequence[Conditioner]) -> None:
  """Raises a UserError if two conditioners have one name."""
  names = [conditioner.name for conditioner in conditioners]
  repeated = {name for name in names if names.count(name) > 1}
  if repeated:
    raise UserError(
      f"several conditioners are named {min(repeated)!r}; give each a name of its own: name='…'"
    )


def check_fields(conditioner: Conditioner, batch: dict) -> None:
  """Raises a UserError if a batch lacks an array that a conditioner reads."""
  for field in conditioner.fields:
    check_field(conditioner, field, batch)


def check_field(conditioner: Conditioner, field: str, batch: dict) -> None:
  if field not in batch:
    raise UserError(
      f"conditioner {conditioner.name!r} reads {field!r}, and the data has {', '.join(sorted(batch))}; "
      "expected one of those"
    )


def tower_params(conditioners: Sequence[Conditioner], frozen: dict) -> dict:
  """The parameters of the conditioners' towers, by name, of what a stage needs.

  Raises:
    UserError: a tower is not among it.
  """
  named = [conditioner.name for conditioner in conditioners if conditioner.tower is not None]
  if missing := [name for name in named if name not in frozen]:
    raise UserError(
      f"conditioner {missing[0]!r} has a tower, which is not among needs; expected "
      f"Need({missing[0]!r}, 'runs/…'), the workdir that jldm convert made of it"
    )
  return {name: frozen[name].params for name in named}


def with_derived(conditioners: Sequence[Conditioner], data: Spec) -> Spec:
  """The arrays of an example with those that conditioners derive."""
  return tuple(data) + tuple(one for conditioner in conditioners for one in conditioner.derived_spec())


def array_name(conditioner: Conditioner, key: str) -> str:
  """The name of a cached condition in a batch."""
  return f"{conditioner.name}__{key}"


def cached_conditions(
  conditioners: Sequence[Conditioner], params: Any, batch: dict, encode: Encode, keys: Array
) -> dict:
  """The arrays kept per example for training: fields to draw from, and inputs of cached conditioners.

  Raises:
    UserError: the batch lacks an array that a conditioner reads.
  """
  kept = {}
  for conditioner in conditioners:
    check_fields(conditioner, batch)
    if conditioner.cached:
      embedded = conditioner.embed(
        params.get(conditioner.name, {}), conditioner.draw_inputs(batch, keys), encode
      )
      kept |= {
        array_name(conditioner, key): in_dtype(value, conditioner.kept_as) for key, value in embedded.items()
      }
    else:
      kept |= {field: batch[field] for field in conditioner.fields}
  return kept


def draw_conditions(
  conditioners: Sequence[Conditioner], params: Any, batch: dict, encode: Encode, keys: Sequence[Array]
) -> Conditions:
  """The conditions of a training batch, each with its own dropout; keys: one [B] per conditioner."""
  conditions = {}
  for conditioner, key in zip(conditioners, keys, strict=True):
    key_draw, key_drop = split_each(key)
    own = params.get(conditioner.name, {})
    if conditioner.cached:
      prefix = array_name(conditioner, "")
      embedded = {
        name.removeprefix(prefix): in_dtype(value, "float32")
        for name, value in batch.items()
        if name.startswith(prefix)
      }
    else:
      embedded = conditioner.embed(own, conditioner.draw_inputs(batch, key_draw), encode)
    keep = jax.vmap(jax.random.uniform)(key_drop) >= conditioner.dropout
    conditions[conditioner.name] = select_per_sample(keep, embedded, conditioner.null(own, embedded))
  return conditions


def in_dtype(value: Any, dtype: str) -> Any:
  """The float arrays of a tree in a dtype, others as they are."""
  is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  return jax.tree.map(lambda x: x.astype(dtype) if is_float(x) else x, value)


def select_per_sample(keep: Array, some: dict[str, Array], others: dict[str, Array]) -> dict[str, Array]:
  """Per sample one of two conditions: `some` where keep [B], else `others`."""
  return jax.tree.map(lambda a, b: jnp.where(expand(keep, a), a, b), some, others)


def join_conditions(conditions: Conditions) -> dict[str, Array]:
  """The network's inputs, from the conditions of all conditioners.

  `vector` and `concat` are concatenated along their channels, tokens along their length.

  Raises:
    UserError: two conditioners with an input that cannot be joined, such as two labels.
  """
  inputs: dict[str, Array] = {}
  for condition in add_masks(list(conditions.values())):
    for key, value in condition.items():
      if key == HELD:
        inputs[key] = merge_parts(inputs.get(key, {}), value)
        continue
      if key in inputs and key not in JOINED_AT:
        raise UserError(
          f"two conditioners give {key!r} to the network; "
          "expected one of them, or others as a vector or tokens"
        )
      inputs[key] = jnp.concatenate([inputs[key], value], JOINED_AT[key]) if key in inputs else value
  return inputs


def merge_parts(some: dict, others: dict) -> dict:
  """The held parts of two conditioners; UserError if both hold one."""
  both = sorted(some.keys() & others.keys())
  if both:
    raise UserError(f"two conditioners hold the part {both[0]!r}; expected one of them")
  return some | others


def add_masks(conditions: list[dict[str, Array]]) -> list[dict[str, Array]]:
  """If some tokens have a mask, the others get one that is True everywhere."""
  if not any("mask" in condition for condition in conditions):
    return conditions
  whole = lambda tokens: jnp.ones(tokens.shape[:2], bool)
  return [{"mask": whole(each["tokens"])} | each if "tokens" in each else each for each in conditions]


def blank_inputs(conditioner: Conditioner, data: Spec) -> Inputs:
  """Inputs [1, ...] of zeros, in the shapes of those drawn from `data`, for requests that give none."""
  shapes = jax.eval_shape(
    conditioner.draw_inputs, batch_shapes(with_derived([conditioner], data), 1), key_shapes(1)
  )
  return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
