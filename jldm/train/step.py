"""The training step: one pure function, compiled once.

The key of step n is fold_in(root, n), and every draw of an example is folded with its row in the
global batch, so that devices, processes and microbatches see the same noise.
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

SKIPS_ALLOWED = 10  # that many non-finite updates in a row, and the state no longer changes


def microbatches(batch: Any, count: int) -> Any:
  """[B, ...] -> [count, B / count, ...]; microbatch a takes rows a, a + count, ..., so sharded rows
  stay where they are.
  """
  return jax.tree.map(lambda x: jnp.swapaxes(x.reshape((-1, count) + x.shape[1:]), 0, 1), batch)


def step_fn(
  loss: Callable,
  tx: optax.GradientTransformation,
  ema: Average,
  accumulate: int = 1,
  axis_name: str | None = None,
) -> Callable:
  """(state, batch, root, frozen) -> (state, metrics).

  loss(params, extra, ema[0], frozen, batch, key) -> ([B], Aux); `accumulate` microbatches are
  averaged by a scan; `axis_name` is for `pmap` alone.  A non-finite update is not made, and counted
  in `state.skipped`.

  Raises:
    UserError: `ema` is a number.
  """
  if isinstance(ema, (int, float)):
    raise UserError(f"ema={ema}; expected an average such as Decay({ema})")

  def gradients(state: TrainState, batch, key, frozen):
    def mean_loss(params):
      values, aux = loss(params, state.extra, state.ema[0], frozen, batch, key)
      return values.mean(), aux

    return jax.value_and_grad(mean_loss, has_aux=True)(state.params)

  def accumulated(state: TrainState, batch, key, frozen):
    if accumulate == 1:
      return gradients(state, batch, key, frozen)
    parts = microbatches(batch, accumulate)
    one = lambda part: gradients(state, part, key, frozen)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    )
    add = lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None)
    total, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / accumulate, total)

  def step(state: TrainState, batch, root: Array, frozen) -> tuple[TrainState, dict[str, Array]]:
    result = accumulated(state, batch, jax.random.fold_in(root, state.step), frozen)
    (value, aux), grads = jax.lax.pmean(result, axis_name) if axis_name else result
    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(grad_norm) & (state.skipped < SKIPS_ALLOWED)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    averages = ema.update(state.ema, params, state.step)
    zero = jnp.zeros_like(state.skipped)
    made = state.replace(params=params, extra=aux.extra, ema=averages, opt_state=opt_state, skipped=zero)
    kept = state.replace(skipped=state.skipped + 1)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), made, kept)
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
  """`step_fn`, jitted with the state donated; arguments keep the shardings that they come with, and
  the state that comes out has those of `places` where they are given.
  """
  return jax.jit(
    step_fn(loss, tx, ema, accumulate),
    donate_argnums=0,
    out_shardings=None if places is None else (places, None),
  )
