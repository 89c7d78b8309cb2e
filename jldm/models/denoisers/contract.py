"""The contract of a denoising network: network(z, noise_level, inputs, estimate=None) -> Output.

It is checked on shapes before training, without memory and without a compilation.
"""

from collections.abc import Callable
import dataclasses
import inspect
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.specs import Output
from jldm.core.trees import leaf_names

CONTRACT = (
  "expected network(z, noise_level, inputs, estimate=None) -> Output(value, log_variance=None, variance=None)"
)
MOST_TEXT = 300  # characters of an error that a network raised


def check_network(network: Any, z: Any, inputs: Any) -> None:
  """Raises a UserError unless `network` fits latents like `z` and inputs like `inputs`, in one line.

  z: jax.ShapeDtypeStruct [B, ...], or a tree of them, by part.
  inputs: jax.ShapeDtypeStruct [B, ...] by name, as the conditioners make them.
  """
  check_class(network)
  check_hashable(network)
  check_signature(network)
  name = type(network).__name__
  noise_level = jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape[:1], jnp.float32), z)
  given = f"z {describe(z)} and inputs {describe(inputs)}"
  key = jax.eval_shape(lambda: jax.random.key(0))
  variables = evaluate(network.init, f"{name}.init", given, key, z, noise_level, inputs)
  check_variables(name, variables)
  for estimate in ({}, {"estimate": z}):
    call = f"{name}(z, noise_level, inputs{', estimate' if estimate else ''})"
    check_output(call, evaluate(network.apply, call, given, variables, z, noise_level, inputs, **estimate), z)


def check_class(network: Any) -> None:
  """Raises a UserError unless `network` is an object of a linen class; not flax.nnx, a class, a function."""
  if isinstance(network, type):
    raise UserError(
      f"network is the class {network.__name__}; expected an object of it, such as {network.__name__}()"
    )
  if isinstance(network, nn.Module):
    return
  name = type(network).__name__
  if any(cls.__module__.startswith("flax.nnx") for cls in type(network).__mro__):
    raise UserError(
      f"network is {name}, a flax.nnx module; expected a flax.linen Module, whose parameters are not its own"
    )
  raise UserError(f"network is of {name}; expected a flax.linen Module, {CONTRACT.removeprefix('expected ')}")


def check_hashable(network: nn.Module) -> None:
  """A network is a static argument of compiled functions, so each of its fields must have a hash."""
  for field in dataclasses.fields(network):
    value = getattr(network, field.name)
    if field.name not in ("parent", "name") and not is_hashable(value):
      hint = "a tuple" if isinstance(value, list) else "a tuple, a number, a string or a frozen dataclass"
      raise UserError(
        f"{type(network).__name__}.{field.name} is {type(value).__name__}, which has no hash; expected {hint}"
      )
  if not is_hashable(network):
    raise UserError(
      f"{type(network).__name__} has no hash; expected a flax.linen Module without an __eq__ of its own"
    )


def is_hashable(value: Any) -> bool:
  try:
    hash(value)
  except TypeError:
    return False
  return True


def check_signature(network: nn.Module) -> None:
  """`__call__` must take z, noise_level, inputs by position, and an optional `estimate` by name."""
  name = type(network).__name__
  if not callable(network):
    raise UserError(f"{name} has no __call__; {CONTRACT}")
  signature = inspect.signature(type(network).__call__)
  for estimate in ({}, {"estimate": None}):
    try:
      signature.bind(network, "z", "noise_level", "inputs", **estimate)
    except TypeError as error:
      raise UserError(f"{name}.__call__{signature} does not fit: {error}; {CONTRACT}") from error


def check_variables(name: str, variables: Any) -> None:
  """Parameters, and nothing else: no other collection is trained, averaged or kept."""
  others = sorted(set(variables) - {"params"})
  if others:
    raise UserError(
      f"{name} has variables in {', '.join(others)}; "
      "expected params alone, such as GroupNorm has, not BatchNorm"
    )
  if not jax.tree.leaves(variables):
    raise UserError(f"{name} has no parameters; expected some to train")


def check_output(call: str, output: Any, z: Any) -> None:
  """An Output in float32: value and variance shaped like z, log_variance [B]; trees, if z is one."""
  like_z = jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape, jnp.float32), z)
  per_sample = jax.tree.map(lambda part: jax.ShapeDtypeStruct(part.shape[:1], jnp.float32), z)
  if not isinstance(output, Output):
    raise UserError(
      f"{call} returns {describe(output)}; "
      f"expected jldm.core.specs.Output(value) with value {describe(like_z)}"
    )
  expected = Output(like_z, per_sample, like_z)
  for name, legal in expected._asdict().items():
    value = output._asdict()[name]
    if value is None and name != "value":
      continue
    if describe(value) != describe(legal):
      like = "" if name == "log_variance" else ", like z"
      raise UserError(f"{call} returns {name} {describe(value)}; expected {describe(legal)}{like}")


def evaluate(function: Callable, call: str, given: str, *arguments: Any, **named: Any) -> Any:
  """The shapes of a function's result; an error in it becomes one line."""
  try:
    return jax.eval_shape(function, *arguments, **named)
  except UserError:
    raise
  except Exception as error:  # whatever a person's own network raises
    reason = " ".join(str(error).split())[:MOST_TEXT]
    raise UserError(f"{call} does not take {given}: {type(error).__name__}: {reason}") from error


def describe(tree: Any) -> str:
  """ "float32 [2, 8, 8, 4]", or of a tree "label: int32 [2], tokens: float32 [2, 77, 768]"."""
  texts = [f"{leaf.dtype} {list(leaf.shape)}" for leaf in jax.tree.leaves(tree)]
  named = zip(leaf_names(tree, "."), texts)
  return ", ".join(f"{name}: {text}" if name else text for name, text in named) or "nothing"
