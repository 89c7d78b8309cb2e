"""The state of a training run: everything that a step changes, and no key (the key of step n is a function of n)."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from jldm.train.ema import Average

Array = jax.Array


@struct.dataclass
class TrainState:
  """step, int32 []: updates asked for; params; extra: non-gradient state; ema: averages of params in float32, of which
  losses and samples see the first; opt_state; skipped, int32 []: how many updates in a row, up to this one, were not
  finite and not made."""

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
