"""Trains one stage, from its newest good checkpoint or from the start, to its last step."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jldm.core.errors import NonFiniteError
from jldm.core.keys import stage_keys
from jldm.data.balance import balance, describe_classes, read_labels
from jldm.data.batches import batches
from jldm.data.tfds import ImageData
from jldm.distributed import multihost, sharding
from jldm.inference.load import load_finished
from jldm.inference.model import frozen_shapes, trained_shapes
from jldm.runs.frozen import load_frozen
from jldm.runs.latents import encode_training_set, measure_latents
from jldm.runs.patience import watch_figure
from jldm.runs.previews import PREVIEWS
from jldm.runs.run import Run, mesh_for_stage
from jldm.runs.start import class_change
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.storage.finished import ended_item, is_finished
from jldm.train.ema import Power
from jldm.train.logging import Log
from jldm.train.loop import Change, End, Hook, fit
from jldm.train.state import TrainState, init_state, join_state, split_state
from jldm.train.step import make_step


def train_stage(run: Run, train_set: Any, held_out: Any) -> None:
  """Trains a stage to its last step and commits its result; a stage that is finished is left alone.

  A stage that needs a codec trains on cached latents; its steps never run the encoder.
  """
  stage = run.stage
  mesh = mesh_for_stage(stage, run.devices)
  folder = workdirs.checkpoints_folder(run.workdir, stage.name)
  with Checkpoints(folder, stage.keep, keep_every=stage.keep_every_steps) as saved:
    with run.clock.measure("restore"):
      if is_finished(saved, stage):
        return
      frozen = load_frozen(run, mesh)
    if not stage.steps:
      saved.save(0, {"codec": with_statistics(run, start_params(run), train_set, mesh)})
      return
    source = (
      encode_training_set(run, frozen["codec"].params, train_set, mesh, frozen)
      if "codec" in frozen
      else train_set
    )
    source = in_training_order(run, source, train_set)
    with PREVIEWS[stage.makes](run, frozen, held_out, mesh) as make_previews:
      state = fit_stage(run, source, stage.objective.settle(frozen), saved, mesh, make_previews)
    last = FINAL_ITEMS[stage.makes](run, state, frozen, train_set, mesh)
    step = int(state.step)
    ended = {} if step == stage.steps else ended_item(stage)
    saved.save(step, split_state(state) | last | ended)


def in_training_order(run: Run, source: Any, train_set: Any) -> Any:
  """`source`; if classes are balanced, as one that reads them equally often, with a line of their counts."""
  data = run.experiment.data
  if not data.balance:
    return source
  if multihost.is_primary():
    counts = describe_classes(read_labels(train_set), data.class_names())
    print(f"{run.stage.name}: classes are drawn equally often, of {counts}", flush=True)
  return balance(source, train_set)


def codec_item(run: Run, state: TrainState, frozen: dict, train_set: Any, mesh: Mesh) -> dict:
  """The item of a codec with the mean and std of its latents."""
  params = run.stage.objective.result(state.ema[0], state.extra, frozen).params
  return {"codec": with_statistics(run, params, train_set, mesh)}


def with_statistics(run: Run, params: dict, train_set: Any, mesh: Mesh) -> dict:
  """A codec's parameters with the mean and std of its latents, measured or of the codec it started from."""
  start = start_params(run)
  if start is None or run.stage.remeasure:
    return params | measure_latents(run, params["params"], train_set, mesh)
  return params | {name: start[name] for name in ("mean", "std")}


def start_params(run: Run) -> Any:
  """The parameters that a stage starts from; None if it starts from none."""
  place = run.at.started_from()
  return None if place is None else load_finished(place).params


# What a stage makes -> the further items of its last checkpoint.
FINAL_ITEMS = {"codec": codec_item, "denoiser": lambda *_: {}}


def fit_stage(
  run: Run, source: Any, frozen: dict, saved: Checkpoints, mesh: Mesh, make_previews: Callable
) -> TrainState:
  """Trains a stage to its end, and leaves that state for the caller to save.

  make_previews(log) gives the hooks that show the stage while it trains.
  """
  stage, clock = run.stage, run.clock
  with clock.measure("restore"):
    start = saved.latest() or 0
  with clock.measure("restore" if start else "compile"):
    step, state, train_batches, key_steps, changes = start_or_resume(run, source, frozen, saved, mesh, start)
  with (
    Log(
      run.workdir,
      stage.name,
      start,
      stage.steps,
      stage.batch_size,
      run.wandb,
      stage.optimizer.learning_rate(stage.steps),
      shorter_training(run),
    ) as log,
    clock.measure("step"),
  ):
    end = End(stage.steps)
    keep, log_hooks = logging_hooks(run, saved, log, end)
    stop = (run.notice.hook(stage.name, end, keep),)
    previews = tuple(clock.hook("evaluation", hook) for hook in make_previews(log))
    preview_hooks = tuple(run.notice.guard(hook, stage.name, end, keep) for hook in previews)
    patience_hooks = watch_figure(stage, previews, log, end, state)
    step = clock.steps(step, start, log.made_before)
    try:
      with snapshot_averages(run, state) as snapshot_hooks:
        saves = tuple(clock.hook("save", hook) for hook in snapshot_hooks)
        hooks = log_hooks + saves + stop + preview_hooks + patience_hooks + (seconds_hook(run, log),)
        return fit(step, state, clock.waiting(train_batches), key_steps, frozen, end, hooks, changes)
    except NonFiniteError as error:
      rate = f"start again with a lower {stage.name}.optimizer.schedule.peak"
      raise NonFiniteError(f"{error}; {last_good(saved)}; {rate}{step_back(run.workdir, saved)}") from error


def last_good(saved: Checkpoints) -> str:
  """Which checkpoint a diverged stage goes on from."""
  last = saved.latest()
  return f"last good checkpoint: step {last}" if last else "no checkpoint yet"


def step_back(workdir: Path, saved: Checkpoints) -> str:
  """How to begin from the checkpoint before, since the last weights may be finite and too large already."""
  *_, before, _ = (None, None, *saved.steps())
  if not before:
    return ""
  return f", and if it diverges again, go one back: --workdir NEW --from {workdir} --step {before}"


def shorter_training(run: Run) -> str:
  """What makes a stage shorter: a smaller config of its kind of data, or its own fields."""
  stage, data = run.stage, run.experiment.data
  network = stage.objective.network
  widths = [field.name for field in dataclasses.fields(network) if field.name in ("width", "widths")]
  fields = [f"{stage.name}.steps", *(f"{stage.name}.objective.network.{name}" for name in widths)]
  large = isinstance(data, ImageData) and data.channels == 3 and min(data.height, data.width) > 64
  config = "configs/photos_small.py is a smaller config for one's own photographs; " if large else ""
  return f"{config}smaller {' or '.join(fields)} take less"


def logging_hooks(run: Run, saved: Checkpoints, log: Log, end: End) -> tuple[Callable, tuple[Hook, ...]]:
  """keep(step, state, metrics), which commits a step at any time, and the hooks that log and save."""
  stage, clock = run.stage, run.clock

  def save(n, state, metrics):
    # After a skipped update the checkpoint before is the good one.
    if n < end.step and not metrics["skipped"]:
      saved.save(n, split_state(state))

  def keep(n, state, metrics):
    log.write(n, state, metrics)
    if n % stage.save_every_steps:
      save(n, state, metrics)

  return keep, (
    Hook(1, log.collect),
    Hook(stage.log_every_steps, log.write, at_end=True),
    # A line ends at every checkpoint, so that a resumed run logs the same lines.
    Hook(stage.save_every_steps, log.write),
    clock.hook("save", Hook(stage.save_every_steps, save)),
    clock.hook("save", Hook(1, lambda n, state, metrics: saved.commit())),
  )


def seconds_hook(run: Run, log: Log) -> Hook:
  """Logs where the time went.  It comes last, so that it counts what other hooks took."""
  record = lambda n, state, metrics: log.record(n, run.clock.seconds_by_part())
  return Hook(run.stage.save_every_steps, record, at_end=True)


def start_or_resume(run: Run, source: Any, frozen: dict, saved: Checkpoints, mesh: Mesh, start: int) -> tuple:
  """(train step, state, batches, key of the steps, changes): restored at step `start`, initialised if 0."""
  stage, seed = run.stage, run.seed
  key_init, key_steps, key_codes = sharding.replicate(mesh, stage_keys(seed, stage.name))
  tx = stage.optimizer.build(stage.steps)
  size = stage.batch_size
  local_rows = sharding.local_rows(mesh, size)

  def init(key: jax.Array, batch: dict, frozen: dict, started: Any) -> TrainState:
    made = stage.objective.init(key, batch, frozen)
    return init_state(*(made if started is None else stage.objective.start(*made, started)), tx, stage.ema)

  example = sharding.place_local_rows(mesh, size, next(batches(source, seed, size, 0, 1, local_rows)))
  made = trained_shapes(run.at, frozen_shapes(run.at))  # of towers whole: those of a step are settled
  shapes = jax.eval_shape(lambda *made: init_state(*made, tx, stage.ema), *made)
  places = sharding.shardings_like(mesh, shapes)
  if start:
    like = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, places)
    state = join_state(saved.restore(start, split_state(like)), shapes.extra)
  else:
    if multihost.is_primary() and (change := class_change(run.at)):
      print(f"{stage.name}: starts from {stage.start} with a new label table; {change}", flush=True)
    started, quick = sharding.replicate(mesh, start_params(run)), sharding.quick_compile_options(mesh)
    state = jax.jit(init, out_shardings=places, compiler_options=quick)(key_init, example, frozen, started)
  step = sharding.with_mesh(mesh, make_step(stage.objective.loss, tx, stage.ema, stage.accumulate, places))
  train_batches = (
    sharding.place_local_rows(mesh, size, share)
    for share in batches(source, seed, size, start, stage.steps, local_rows)
  )
  return step, state, train_batches, key_steps, refresh_changes(run, key_codes, mesh)


def refresh_changes(run: Run, key: jax.Array, mesh: Mesh) -> tuple[Change, ...]:
  """The changes that an objective makes between steps, such as replacing dead codes of a codebook."""
  objective = run.stage.objective
  if not objective.refresh_every_steps:
    return ()
  refresh = jax.jit(objective.refresh, compiler_options=sharding.quick_compile_options(mesh))

  def call(n, state, batch):
    extra = refresh(state.params, state.extra, batch, jax.random.fold_in(key, n))
    return state.replace(extra=sharding.shard(mesh, extra))

  return (Change(objective.refresh_every_steps, call),)


@contextlib.contextmanager
def snapshot_averages(run: Run, state: TrainState) -> Iterator[tuple[Hook, ...]]:
  """The hooks that keep snapshots of power-function averages, from which other averages are made later.

  There are none if the stage has another kind of average.
  """
  stage = run.stage
  if not isinstance(stage.ema, Power):
    yield ()
    return
  with Checkpoints(workdirs.averages_folder(run.workdir, stage.name), keep=stage.steps) as kept:

    def take(n, state, metrics):
      new = multihost.broadcast(n not in kept.steps())  # a resumed run reaches the same steps
      if new and not metrics["skipped"]:
        kept.save(n, {str(width): average for width, average in zip(stage.ema.sigma_rel, state.ema)})

    start = int(state.step)
    # The run may have been killed between the commits of a checkpoint and of its snapshot.
    if start and start % stage.snapshot_every_steps == 0:
      take(start, state, {"skipped": 0})
    yield (
      Hook(stage.snapshot_every_steps, take, at_end=True),
      Hook(1, lambda n, state, metrics: kept.commit()),
    )
