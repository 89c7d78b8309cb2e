"""The loss of a denoiser on held-out data while it trains, by noise level.

Its examples, noise and times are the same at every measurement, in every run, so that two figures differ
by the parameters alone, which are the averaged ones.  No condition is dropped.  Mean over LEVELS, it is the
loss of training if times are drawn uniformly.
"""

from collections.abc import Callable
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from jldm.data.batches import in_order
from jldm.data.buckets import Buckets
from jldm.data.index import epoch_permutation
from jldm.data.source import Arrays
from jldm.distributed import sharding
from jldm.inference.model import StagePlace
from jldm.runs.latents import encode_examples
from jldm.runs.run import Run
from jldm.train.logging import Log
from jldm.train.loop import Hook
from jldm.train.state import TrainState

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # t of the noise
MOST = 512  # examples
SEED = 0  # of the noise, and of which examples
FIGURE = "held_out_loss"


def is_measured(at: StagePlace) -> bool:
  """Whether a stage has a loss by noise level, and its data are not all trained on."""
  data = at.experiment.data
  return data.train != data.held_out and at.stage.objective.at_time(LEVELS[0]) is not None


def measure_loss(run: Run, frozen: dict, held_out: Any, mesh: Mesh) -> Callable[[Log], tuple[Hook, ...]]:
  """Gives hooks(log), which log the loss on held-out examples; none if there is nothing to measure."""
  stage = run.stage
  if not is_measured(run.at) or not len(held_out):
    return lambda log: ()
  examples = [Arrays(encode_examples(run, frozen, some, mesh)) for some in choose_examples(held_out)]
  losses = loss_by_level(run, frozen, mesh)

  def hooks(log: Log) -> tuple[Hook, ...]:
    def call(n, state, metrics):
      del metrics
      means = np.concatenate([losses(state, each) for each in examples]).mean(0)
      by_level = {f"{FIGURE}/t{t}": float(mean) for t, mean in zip(LEVELS, means)}
      log.record(n, {FIGURE: float(means.mean())} | by_level)
      listed = ", ".join(f"{mean:.4f} at t={t}" for t, mean in zip(LEVELS, means))
      log.print_line(f"{stage.name} step {n}: held-out loss {means.mean():.4f}: {listed}")

    return (Hook(stage.picture_every_steps, call, at_end=True, measures=FIGURE),)

  return hooks


def choose_examples(held_out: Any) -> list[Arrays]:
  """MOST examples in all, of every shape its share and at least one; the same at every call."""
  sources = held_out.sources if isinstance(held_out, Buckets) else (held_out,)
  share = min(1, MOST / len(held_out))
  counts = [math.ceil(share * len(source)) for source in sources]
  rows = [np.sort(epoch_permutation(SEED, 0, len(each))[:count]) for each, count in zip(sources, counts)]
  return [Arrays(each[chosen]) for each, chosen in zip(sources, rows)]


def loss_by_level(run: Run, frozen: dict, mesh: Mesh) -> Callable[[TrainState, Arrays], np.ndarray]:
  """losses(state, examples) -> float64 [N, LEVELS], by the averaged parameters."""
  objective, key = run.stage.objective, jax.random.key(SEED)
  shards, most = sharding.batch_shard_count(mesh), run.stage.batch_size // run.stage.accumulate

  @jax.jit
  def compute(params: Any, extra: Any, frozen: dict, batch: dict) -> jax.Array:
    at = lambda t: objective.at_time(t).loss(params, extra, params, frozen, batch, key)[0]
    return jax.lax.map(at, jnp.float32(LEVELS)).T  # [B, LEVELS]

  compute = sharding.with_mesh(mesh, compute)

  def losses(state, examples):
    count = len(examples)
    row = np.arange(count, dtype=np.int32)
    numbered = Arrays(examples.arrays | {"row": row, "stratum": np.float32(row / count)})
    size = min(most, math.ceil(count / shards) * shards)
    each = []
    for batch, used in run.notice.checked(in_order(numbered, size)):
      made = compute(state.ema[0], state.extra, frozen, sharding.shard_batch(mesh, batch))
      each.append(np.asarray(sharding.fetch(made), np.float64)[:used])
    return np.concatenate(each)

  return losses
