"""The state of a training run: everything that a step changes, and no key (the key of step n is a
function of n).
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
  """step, int32 []: updates asked for; params; extra: non-gradient state; ema: averages of params in
  float32, of which losses and samples see the first; opt_state; skipped, int32 []: how many updates
  in a row, up to this one, were not finite and not made.
  """

  step: Array
  params: Any
  extra: Any
  ema: tuple
  opt_state: Any
  skipped: Array


def init_state(params: Any, extra: Any, tx: optax.GradientTransformation, ema: Average) -> TrainState:
  """The state before the first step; `ema` has buffers of its own, since the state is donated."""
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, params, extra, ema.init(params), tx.init(params), jnp.zeros_like(zero))


def divide(state: TrainState) -> dict:
  """A state as the items of a checkpoint: what later stages and samples need of it can be read alone."""
  return {"state": state.replace(ema=state.ema[1:], extra=None)} | averaged(state.ema[0], state.extra)


def averaged(ema: Any, extra: Any) -> dict:
  """The items of the first average and the non-gradient state, arrays or shapes; that one is left out
  if it is empty.
  """
  return {"ema": ema} | ({"extra": extra} if jax.tree.leaves(extra) else {})


def join(items: dict, empty: Any = None) -> TrainState:
  """The inverse of `divide`; `empty` is the non-gradient state if it has no arrays."""
  state = items["state"]
  return state.replace(ema=(items["ema"], *state.ema), extra=items.get("extra", empty))
