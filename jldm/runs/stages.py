"""Both stages of an experiment, run in a workdir.

  1. The autoencoder is trained; then the training set is encoded once, its latents measured, and the codec committed
     with the last step; one that starts from another workdir keeps what that knows of its latents.  A stage whose last
     step is committed is finished and is not run again.
  2. The denoiser is trained on latents drawn from the cached moments; it never runs the encoder.

Whatever is interrupted goes on from the newest good checkpoint: data and keys are functions of the step.
"""

from collections.abc import Iterator
import contextlib
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from jldm.config.experiment import Experiment, Stage
from jldm.config.serialize import to_data
from jldm.core.errors import NonFiniteError, UserError
from jldm.core.keys import row_keys, stage_keys
from jldm.data.batches import batches, in_order
from jldm.distributed import multihost, sharding
from jldm.evaluation.judge import reconstruction
from jldm.inference.generate import Request, generate, times
from jldm.inference.load import Model, load_codec, of, of_kind
from jldm.media import images as pictures
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.pictures import Masked, Paired
from jldm.runs import selection
from jldm.runs.latents import committed_codec, encoded, frozen_of, measured
from jldm.runs.run import Run, layout_of, mesh_of
from jldm.runs.validate import check_shapes, check_stage, check_start, lpips_weights, rehearse
from jldm.storage import lock, workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.ema import Power
from jldm.train.logging import Log, import_wandb, start_wandb
from jldm.train.loop import Change, Hook, fit
from jldm.train.preemption import watched
from jldm.train.state import TrainState, init_state
from jldm.train.step import make_step

PREVIEW_COLUMNS = 8
PREVIEW_CLASSES = 10


def train(
  experiment: Experiment,
  workdir: str | Path,
  stages: tuple[str, ...] = workdirs.STAGES,
  devices: sharding.Devices = None,
  wandb: str | None = None,
) -> None:
  """Runs the stages that are not finished, in order; everything that can be refused is refused before anything is written.

  `wandb` is a project of Weights & Biases to log to as well.

  Raises:
    UserError: a data set that is missing or does not fit, a batch that the devices do not divide, another experiment in
      the workdir, another training in it, a denoiser asked for before the autoencoder is finished, wandb that is not
      installed, a disk that is full or may not be written to.
    NonFiniteError: ten non-finite updates in a row.
    Preempted: SIGTERM came; the step it came in is committed.
  """
  workdir, experiment = Path(workdir), workdirs.resolved(experiment)
  model, stages = of(experiment), chosen(experiment, stages)
  if multihost.first():
    workdirs.check(workdir, experiment)
  train_set, held_out = experiment.data.open(experiment.data.train), experiment.data.open(experiment.data.held_out)
  for name in stages:
    check_stage(getattr(experiment, name), name, devices)
  check_start(experiment)
  check_shapes(model, experiment.data)
  times(model, model.sampling)  # what could not be sampled is not trained
  for name in stages:
    rehearse(experiment, model, name)
  extractor = selection.check(experiment, model)
  if "autoencoder" not in stages:
    committed_codec(model, workdir, experiment)
  if wandb:
    import_wandb()
  with watched() as notice, workdirs.writing(workdir), claimed(workdir, experiment):
    logged = start_wandb(wandb, workdir, to_data(experiment)) if wandb and multihost.first() else None
    run = Run(experiment, model, workdir, devices, extractor, logged, notice)
    if "autoencoder" in stages:
      train_autoencoder(run, train_set, held_out)
    if "denoiser" in stages:
      notice.check()
      train_denoiser(run, train_set, held_out)
    if run.wandb is not None:
      run.wandb.finish()


def chosen(experiment: Experiment, stages: tuple[str, ...]) -> tuple[str, ...]:
  """Those of the stages that the experiment trains; UserError if it is none."""
  trained = tuple(name for name in stages if name in workdirs.stages_of(experiment))
  if not trained:
    known = ", ".join(workdirs.stages_of(experiment))
    raise UserError(f"stage {', '.join(stages)}: the experiment trains {known} alone; choose that")
  return trained


@contextlib.contextmanager
def claimed(workdir: Path, experiment: Experiment) -> Iterator[None]:
  """The workdir is this run's: the first process holds its lock, and the others see the same folder."""
  with lock.held(workdir) if multihost.first() else contextlib.nullcontext():
    if multihost.first():
      workdirs.claim(workdir, experiment)
    multihost.meet("claimed")
    if not multihost.first():
      workdirs.check_shared(workdir, experiment)
    yield


def begin(run: Run, name: str, source: Any, frozen: dict, saved: Checkpoints, mesh: Mesh, start: int) -> tuple:
  """What a stage goes on with from a committed step, or from nothing: (step, state, batches, the steps' key, changes)."""
  stage, seed = getattr(run.experiment, name), run.seed
  key_init, key_steps, key_codes = sharding.place(mesh, stage_keys(seed, workdirs.STAGES.index(name)))
  tx = stage.optimizer.build(stage.steps)
  codec = sharding.place(mesh, load_codec(stage.start)[1]) if stage.start else None
  here, size = sharding.rows_here(mesh, stage.batch_size), stage.batch_size

  def init(key: jax.Array, batch: dict, codec: dict | None, frozen: dict) -> TrainState:
    made = stage.objective.init(key, batch, frozen)
    return init_state(*(made if codec is None else stage.objective.start(*made, codec)), tx, stage.ema)

  example = sharding.place_share(mesh, size, next(batches(source, seed, size, 0, 1, here)))
  shapes = jax.eval_shape(init, key_init, example, codec, frozen)
  places = sharding.split(mesh, shapes)
  if start:
    like = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, places)
    state = join(saved.restore(start, divide(like)))
  else:
    quick = sharding.quick_compile(mesh)
    state = jax.jit(init, out_shardings=places, compiler_options=quick)(key_init, example, codec, frozen)
  step = sharding.on(mesh, make_step(stage.objective.loss, tx, stage.ema, stage.accumulate, places))
  rows = (sharding.place_share(mesh, size, share) for share in batches(source, seed, size, start, stage.steps, here))
  return step, state, rows, key_steps, restarts(stage, key_codes, mesh)


def fit_stage(run: Run, name: str, source: Any, frozen: Any, saved: Checkpoints, mesh: Mesh, hooks: Any) -> TrainState:
  """One stage from its newest good checkpoint, or from the start, to its last step, which is left for the caller to save.

  hooks(log) -> further hooks.
  """
  stage, clock = getattr(run.experiment, name), run.clock
  with clock.on("restore"):
    start = saved.latest() or 0
  with clock.on("restore" if start else "compile"):
    step, state, rows, key_steps, changes = begin(run, name, source, frozen, saved, mesh, start)
  with Log(run.workdir, name, start, stage.steps, stage.batch_size, run.wandb) as log, clock.on("step"):

    def save(n, state, metrics):
      if n < stage.steps and not metrics["skipped"]:  # amid updates that were not made, the checkpoint before is the good one
        saved.save(n, divide(state))

    def keep(n, state, metrics):
      log.write(n, state, metrics)
      if n % stage.save_every_steps:
        save(n, state, metrics)

    own = (
      Hook(1, log.collect),
      Hook(stage.log_every_steps, log.write, at_end=True),
      Hook(stage.save_every_steps, log.write),  # so that a line's steps never straddle where a run may go on from
      clock.hook("save", Hook(stage.save_every_steps, save)),
      clock.hook("save", Hook(1, lambda n, state, metrics: saved.commit())),
      Hook(stage.save_every_steps, lambda n, state, metrics: log.record(n, clock.line()), at_end=True),
    )
    stop = (run.notice.hook(name, stage.steps, keep),)
    looks = tuple(clock.hook("evaluation", run.notice.guard(hook, name, stage.steps, keep)) for hook in hooks(log))
    step = clock.steps(step, start, log.made_before)
    try:
      with snapshots(stage, name, run.workdir, state) as taken:
        saves = tuple(clock.hook("save", hook) for hook in taken)
        return fit(step, state, clock.waiting(rows), key_steps, frozen, stage.steps, own + saves + stop + looks, changes)
    except NonFiniteError as error:
      last = saved.latest()
      where = f"last good checkpoint: step {last}" if last else "no checkpoint yet"
      raise NonFiniteError(f"{error}; {where}; start again with a lower {name}.optimizer.schedule.peak") from error


def restarts(stage: Stage, key: jax.Array, mesh: Mesh) -> tuple[Change, ...]:
  """Where the objective has state to refresh outside the step, such as the dead codes of a codebook."""
  every = getattr(stage.objective, "refresh_every_steps", 0)
  if not every:
    return ()
  refresh = jax.jit(stage.objective.refresh, compiler_options=sharding.quick_compile(mesh))

  def call(n, state, batch):
    extra = refresh(state.params, state.extra, batch, jax.random.fold_in(key, n))
    return state.replace(extra=sharding.spread(mesh, extra))

  return (Change(every, call),)


@contextlib.contextmanager
def snapshots(stage: Stage, name: str, workdir: Path, state: TrainState) -> Iterator[tuple[Hook, ...]]:
  """Where the stage has power-function averages, all of them are kept every so often, to be made into others later."""
  if not isinstance(stage.ema, Power):
    yield ()
    return
  with Checkpoints(workdirs.averages(workdir, name), keep=stage.steps) as kept:

    def take(n, state, metrics):
      new = multihost.agreed(n not in kept.steps())  # a run that was resumed comes to the same ones
      if new and not metrics["skipped"]:
        kept.save(n, {str(width): average for width, average in zip(stage.ema.sigma_rel, state.ema)})

    start = int(state.step)
    if start and start % stage.snapshot_every_steps == 0:  # a kill may come between the commits of a checkpoint and of these
      take(start, state, {"skipped": 0})
    yield Hook(stage.snapshot_every_steps, take, at_end=True), Hook(1, lambda n, state, metrics: kept.commit())


def divide(state: TrainState) -> dict:
  """A state as the items of a checkpoint: the average that samples are drawn with can be read alone."""
  return {"state": state.replace(ema=state.ema[1:]), "ema": state.ema[0]}


def join(items: dict) -> TrainState:
  return items["state"].replace(ema=(items["ema"], *items["state"].ema))


def train_autoencoder(run: Run, train_set: Any, held_out: Any) -> None:
  """Stage 1, and the codec."""
  stage, model, name = run.experiment.autoencoder, run.model, "autoencoder"
  mesh = mesh_of(stage, run.devices)
  found = lambda state: stage.objective.codec(state.ema[0], state.extra)

  @jax.jit
  def reconstruct(codec: dict, images: jax.Array) -> jax.Array:
    return model.codec.decode(codec, model.codec.encode(codec, {"image": images}).mean)

  def look(log):
    def call(n, state, metrics):
      del metrics
      batches = run.notice.between(in_order(held_out, stage.batch_size))
      held = ((codecs.pixels(sharding.place_batch(mesh, batch["image"])), count) for batch, count in batches)
      each, first = reconstruction(lambda images: reconstruct(found(state), images), held, first_alone=True)
      values = {key: float(value.mean()) for key, value in each.items()}
      log.record(n, {f"held_out_{key}": value for key, value in values.items()})
      log.say(f"autoencoder step {n}: held-out PSNR {values['psnr']:.2f} dB, SSIM {values['ssim']:.4f}")
      shown = min(len(first), 4 * PREVIEW_COLUMNS)
      originals, _ = next(in_order(held_out, shown))
      sheet = pictures.beside(originals["image"], first[:shown])
      write_image(run.workdir, name, n, sheet, "reconstruction")

    return (Hook(stage.picture_every_steps, call, at_end=True),)

  with Checkpoints(workdirs.checkpoints(run.workdir, name)) as saved:
    with run.clock.on("restore"):
      done = saved.latest() == stage.steps
    if done:
      return
    start = load_codec(stage.start)[1] if stage.start else None
    if not stage.steps:
      saved.save(0, {"codec": start})
      return
    frozen = sharding.place(mesh, lpips_weights(stage.objective))
    state = fit_stage(run, name, train_set, frozen, saved, mesh, look)
    known = {name: start[name] for name in ("mean", "std")} if start else measured(run, found(state)["params"], train_set, mesh)
    saved.save(stage.steps, divide(state) | {"codec": found(state) | known})


def train_denoiser(run: Run, train_set: Any, held_out: Any) -> None:
  """Stage 2, in the latent space of the committed codec."""
  stage, model, name = run.experiment.denoiser, run.model, "denoiser"
  mesh = mesh_of(stage, run.devices)
  with run.clock.on("restore"):
    codec = sharding.spread(mesh, committed_codec(model, run.workdir, run.experiment))
  with Checkpoints(workdirs.checkpoints(run.workdir, name)) as saved:
    with run.clock.on("restore"):
      done = saved.latest() == stage.steps
    if done:
      return
    cache = encoded(run, codec, train_set, mesh)

    def call(n, state, metrics):
      del metrics
      params = state.ema[0] | {"codec": codec}
      sheet = (conditioned if shown_conditioner(model) else sampled)(run, params, held_out, mesh)
      write_image(run.workdir, name, n, sheet, "samples")

    among = run.workdir, run.extractor, layout_of(mesh), run.notice.between
    with selection.judged(run.experiment, model, codec, *among) as judge:
      look = lambda log: (Hook(stage.picture_every_steps, call, at_end=True), *judge(log))
      state = fit_stage(run, name, cache, frozen_of(model, codec), saved, mesh, look)
    saved.save(stage.steps, divide(state))


def sampled(run: Run, params: dict, held_out: Any, mesh: Mesh) -> np.ndarray:
  """A sheet of samples, a row per class."""
  classes = run.experiment.data.classes
  labels = np.repeat(np.arange(min(classes, PREVIEW_CLASSES)) if classes else [-1] * PREVIEW_COLUMNS, PREVIEW_COLUMNS)
  request = Request(n=len(labels), seed=run.seed, given=label_of(run.model, labels))
  samples = generate(run.model, params, request, devices=layout_of(mesh), progress=run.notice.between)
  return pictures.class_rows(samples.data, labels, PREVIEW_COLUMNS)


def shown_conditioner(model: Model) -> str | None:
  """The name of the conditioner whose pictures are shown beside samples; None if it has none."""
  return of_kind(model, Masked) or of_kind(model, Paired)


def label_of(model: Model, labels: np.ndarray) -> dict:
  """What a request gives for labels [n]; {} if the model has no classes."""
  name = of_kind(model, ClassLabel)
  return {} if name is None else {name: labels}


def conditioned(run: Run, params: dict, held_out: Any, mesh: Mesh) -> np.ndarray:
  """A sheet of held-out pictures, below each what the model is given of it, and below that what it makes of it."""
  batch, count = next(in_order(held_out, 2 * PREVIEW_COLUMNS))
  name, images = shown_conditioner(run.model), batch["image"][:count]
  keys = row_keys(stage_keys(run.seed, workdirs.STAGES.index("denoiser"))[2], np.arange(count))
  drawn = run.model.conditioners[name].draw({"image": images}, keys)
  shown = drawn["image"] * drawn.get("known", 1)
  given = (images, drawn["known"]) if "known" in drawn else drawn["image"]
  given = {name: given} | label_of(run.model, batch["label"][:count])
  request = Request(n=count, seed=run.seed, given=given, size=images.shape[1:3])
  samples = generate(run.model, params, request, devices=layout_of(mesh), progress=run.notice.between)
  every = (images, pictures.to_uint8(shown), samples.data)
  return pictures.tile_rows([some[i : i + PREVIEW_COLUMNS] for i in range(0, count, PREVIEW_COLUMNS) for some in every])


def write_image(workdir: Path, stage: str, step: int, image: np.ndarray, what: str) -> None:
  if not multihost.first():
    return
  folder = workdir / "images"
  folder.mkdir(exist_ok=True)
  pictures.write_png(folder / f"{stage}-{step:06d}.png", image, {"what": what, "stage": stage, "step": step})
