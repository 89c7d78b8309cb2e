"""The training step: one pure function, compiled once.

The key of step n is fold_in(root, n).  Each example folds it with its row in the global batch, so
devices, processes and microbatches see the same noise.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jldm.core.errors import UserError
from jldm.train.ema import Average
from jldm.train.state import TrainState

Array = jax.Array

SKIPS_ALLOWED = 10  # after so many non-finite updates in a row the state no longer changes


def microbatches(batch: Any, count: int) -> Any:
  """[B, ...] -> [count, B / count, ...].

  Microbatch a takes rows a, a + count, ..., so sharded rows stay on their devices.
  """

  def split(x: Array) -> Array:
    x = x.reshape((-1, count) + x.shape[1:])  # [B / count, count, ...]
    return jnp.swapaxes(x, 0, 1)  # [count, B / count, ...]

  return jax.tree.map(split, batch)


def loss_and_gradients(loss: Callable, state: TrainState, batch: Any, key: Array, frozen: Any) -> tuple:
  """-> ((mean loss [], Aux), gradients) of one batch."""

  def mean_loss(params: Any) -> tuple[Array, Any]:
    losses, aux = loss(params, state.extra, state.ema[0], frozen, batch, key)  # [B]
    return losses.mean(), aux

  return jax.value_and_grad(mean_loss, has_aux=True)(state.params)


def accumulate_gradients(
  loss: Callable, state: TrainState, batch: Any, key: Array, frozen: Any, count: int
) -> tuple:
  """As `loss_and_gradients`, the mean over `count` microbatches, one after the other in a scan."""
  parts = microbatches(batch, count)

  def one(part: Any) -> tuple:
    return loss_and_gradients(loss, state, part, key, frozen)

  def add(total: tuple, part: Any) -> tuple[tuple, None]:
    return jax.tree.map(jnp.add, total, one(part)), None

  shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  total, _ = jax.lax.scan(add, zeros, parts)
  return jax.tree.map(lambda x: x / count, total)


def choose(condition: Array, update: Callable, skip: Callable, state: TrainState) -> TrainState:
  """update(state) if `condition`, bool [], else skip(state).

  A CPU branches, since selecting takes it several times as long as AdamW.  Others select: the host of a
  GPU would wait for the condition.
  """

  def branch() -> TrainState:
    return jax.lax.cond(condition, update, skip, state)

  def select() -> TrainState:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), update(state), skip(state))

  return jax.lax.platform_dependent(cpu=branch, default=select)


def step_fn(
  loss: Callable,
  tx: optax.GradientTransformation,
  ema: Average,
  accumulate: int = 1,
  axis_name: str | None = None,
) -> Callable:
  """The step (state, batch, root, frozen) -> (state, metrics).

  loss(params, extra, ema[0], frozen, batch, key) -> ([B], Aux).  A scan averages the gradients of
  `accumulate` microbatches.  `axis_name` is for `pmap` alone.  A step whose loss or gradient is not
  finite leaves the state as it was, and adds one to `state.skipped`.

  Raises:
    UserError: `ema` is a number.
  """
  if isinstance(ema, (int, float)):
    raise UserError(f"ema={ema}; expected an average such as Decay({ema})")

  def step(state: TrainState, batch: Any, root: Array, frozen: Any) -> tuple[TrainState, dict[str, Array]]:
    key = jax.random.fold_in(root, state.step)
    if accumulate == 1:
      result = loss_and_gradients(loss, state, batch, key, frozen)
    else:
      result = accumulate_gradients(loss, state, batch, key, frozen, accumulate)
    if axis_name:
      result = jax.lax.pmean(result, axis_name)
    (value, aux), grads = result

    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm) & (state.skipped < SKIPS_ALLOWED)

    def update(state: TrainState) -> TrainState:
      updates, opt_state = tx.update(grads, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
      averages = ema.update(state.ema, params, state.step)
      changed = {"params": params, "extra": aux.extra, "ema": averages, "opt_state": opt_state}
      return state.replace(skipped=jnp.zeros_like(state.skipped), **changed)

    def skip(state: TrainState) -> TrainState:
      return state.replace(skipped=state.skipped + 1)

    new = choose(finite, update, skip, state)
    metrics = {"loss": value, "grad_norm": grad_norm, "skipped": new.skipped} | aux.metrics
    return new.replace(step=state.step + 1), metrics

  return step


def make_step(
  loss: Callable,
  tx: optax.GradientTransformation,
  ema: Average,
  accumulate: int = 1,
  places: TrainState | None = None,
) -> Callable:
  """`step_fn`, jitted, with the state donated.

  Arguments keep their shardings.  The new state has the shardings `places`, if they are given.
  """
  return jax.jit(
    step_fn(loss, tx, ema, accumulate),
    donate_argnums=0,
    out_shardings=None if places is None else (places, None),
  )
