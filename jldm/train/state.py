"""The state of a training run: everything that a step changes.

It has no key, since the key of step n is a function of n.
"""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from jldm.train.ema import Average

Array = jax.Array


@struct.dataclass
class TrainState:
  """Everything that a step changes."""

  step: Array  # int32 []: steps so far, skipped ones included
  params: Any
  extra: Any  # state without gradients
  ema: tuple  # averages of params in float32; losses and samples use the first
  opt_state: Any
  skipped: Array  # int32 []: the last updates in a row that were skipped, since they were not finite


def init_state(params: Any, extra: Any, tx: optax.GradientTransformation, ema: Average) -> TrainState:
  """The state before the first step; `ema` has buffers of its own, since the state is donated."""
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, params, extra, ema.init(params), tx.init(params), jnp.zeros_like(zero))


def split_state(state: TrainState) -> dict:
  """A state as the items of a checkpoint, so that later stages and samples read only what they need."""
  return {"state": state.replace(ema=state.ema[1:], extra=None)} | averaged_items(state.ema[0], state.extra)


def averaged_items(ema: Any, extra: Any) -> dict:
  """The items of the first average and of `extra`, arrays or shapes; an empty `extra` is left out."""
  return {"ema": ema} | ({"extra": extra} if jax.tree.leaves(extra) else {})


def join_state(items: dict, empty: Any = None) -> TrainState:
  """The inverse of `split_state`; `empty` is the value of `extra` if it has no arrays."""
  state = items["state"]
  return state.replace(ema=(items["ema"], *state.ema), extra=items.get("extra", empty))
