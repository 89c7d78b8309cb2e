"""Previews of a stage while it trains: held-out reconstructions of a codec, samples of a denoiser."""

from collections.abc import Callable, Iterator
import contextlib
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from jldm.core.files import replace_file
from jldm.core.keys import row_keys, stage_keys
from jldm.data.batches import in_order
from jldm.distributed import multihost, sharding
from jldm.evaluation.judge import measure_reconstructions
from jldm.inference.generate import Request, generate
from jldm.inference.model import (
  Model,
  build_model,
  classes_of,
  conditioner_of_kind,
  sampling_stage,
  with_frozen,
)
from jldm.media import images as pictures, sheets
from jldm.media.parts import split_pictures
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.pictures import Masked, Paired
from jldm.runs import selection
from jldm.runs.held_out import measure_loss
from jldm.runs.run import Run, layout_of_mesh
from jldm.storage.class_names import read_class_names
from jldm.train.logging import Log
from jldm.train.loop import Hook

PREVIEW_COLUMNS = 8
PREVIEW_CLASSES = 10

MakeHooks = Callable[[Log], tuple[Hook, ...]]


@contextlib.contextmanager
def preview_reconstructions(run: Run, frozen: dict, held_out: Any, mesh: Mesh) -> Iterator[MakeHooks]:
  """Reconstructs held-out pictures with a codec in training: logs PSNR and SSIM, writes a sheet."""
  stage, codec = run.stage, run.model.codec

  @jax.jit
  def reconstruct(params: dict, images: jax.Array) -> jax.Array:
    return codec.decode(params, codec.encode(params, {"image": images}).mean)

  def make_hooks(log):
    def call(n, state, metrics):
      del metrics
      params = stage.objective.result(state.ema[0], state.extra, frozen).params
      batches = run.notice.checked(in_order(held_out, stage.batch_size))
      held = ((codecs.pixels(sharding.shard_batch(mesh, batch["image"])), count) for batch, count in batches)
      each, first = measure_reconstructions(
        lambda images: reconstruct(params, images), held, first_alone=True
      )
      values = {key: float(value.mean()) for key, value in each.items()}
      log.record(n, {f"held_out_{key}": value for key, value in values.items()})
      log.print_line(
        f"{stage.name} step {n}: held-out PSNR {values['psnr']:.2f} dB, SSIM {values['ssim']:.4f}"
      )
      shown = min(len(first), 4 * PREVIEW_COLUMNS)
      originals, _ = next(in_order(held_out, shown))
      write_sheet(run, log, n, sheets.stack_pairs(originals["image"], first[:shown]), "reconstruction")

    return (Hook(stage.picture_every_steps, call, at_end=True, measures="held_out_psnr"),)

  yield make_hooks


@contextlib.contextmanager
def preview_samples(run: Run, frozen: dict, held_out: Any, mesh: Mesh) -> Iterator[MakeHooks]:
  """Writes samples to a sheet, and logs the held-out loss.

  The last stage that draws samples also evaluates them and keeps the best.
  """
  stage, model = run.stage, build_model(run.experiment, run.stage.name)
  sheet_of = conditioned_sheet if picture_conditioner(model) else sample_sheet

  def params_of(state):
    loaded = stage.objective.result(state.ema[0], state.extra, frozen)
    return with_frozen(model, loaded.params, frozen)

  def show_on(log):
    def call(n, state, metrics):
      del metrics
      sheet = sheet_of(run, model, params_of(state), held_out, mesh)
      if sheet is not None:
        write_sheet(run, log, n, sheet, "samples")

    return call

  extractor = run.extractor if stage == sampling_stage(run.experiment) else None
  losses = measure_loss(run, frozen, held_out, mesh)
  with selection.select_best(run, model, params_of, extractor, layout_of_mesh(mesh)) as judge:
    yield lambda log: (Hook(stage.picture_every_steps, show_on(log), at_end=True), *losses(log), *judge(log))


PREVIEWS = {"codec": preview_reconstructions, "denoiser": preview_samples}  # by what a stage makes


def sample_sheet(run: Run, model: Model, params: dict, held_out: Any, mesh: Mesh) -> np.ndarray | None:
  """A sheet of samples, a row per class; of samples in parts the first that is pictures, None if none is."""
  classes = classes_of(model)
  labels = np.repeat(
    np.arange(min(classes, PREVIEW_CLASSES)) if classes else [-1] * PREVIEW_COLUMNS, PREVIEW_COLUMNS
  )
  request = Request(n=len(labels), seed=run.seed, given=given_labels(model, labels))
  drawn = generate(model, params, request, devices=layout_of_mesh(mesh), progress=run.notice.checked)
  shown, _ = split_pictures(drawn.data if model.parts else {"": drawn.data})
  images = next(iter(shown.values()), None)
  if images is None:
    return None
  titles = sheets.row_titles(np.unique(labels), read_class_names(run.workdir))
  if not titles:
    return sheets.class_rows(images, labels, PREVIEW_COLUMNS)
  return sheets.titled_rows([images[labels == label] for label in np.unique(labels)], titles)


def conditioned_sheet(run: Run, model: Model, params: dict, held_out: Any, mesh: Mesh) -> np.ndarray:
  """A sheet of held-out pictures, below each its condition, and below that the sample."""
  batch, count = next(in_order(held_out, 2 * PREVIEW_COLUMNS))
  name, images = picture_conditioner(model), batch["image"][:count]
  keys = row_keys(stage_keys(run.seed, run.stage.name)[2], np.arange(count))
  drawn = model.conditioners[name].draw_inputs({"image": images}, keys)
  shown = drawn["image"] * drawn.get("known", 1)
  given = (images, drawn["known"]) if "known" in drawn else drawn["image"]
  given = {name: given} | given_labels(model, batch["label"][:count])
  request = Request(n=count, seed=run.seed, given=given, size=images.shape[1:3])
  made = generate(model, params, request, devices=layout_of_mesh(mesh), progress=run.notice.checked)
  every = (images, pictures.to_uint8(shown), made.data)
  return sheets.tile_rows(
    [some[i : i + PREVIEW_COLUMNS] for i in range(0, count, PREVIEW_COLUMNS) for some in every]
  )


def picture_conditioner(model: Model) -> str | None:
  """The name of the conditioner that takes pictures; None if the model has none."""
  return conditioner_of_kind(model, Masked) or conditioner_of_kind(model, Paired)


def given_labels(model: Model, labels: np.ndarray) -> dict:
  """The conditions of a request for labels [n]; {} if the model has no classes."""
  name = conditioner_of_kind(model, ClassLabel)
  return {} if name is None else {name: labels}


def write_sheet(run: Run, log: Log, step: int, sheet: np.ndarray, what: str) -> None:
  """Writes a sheet to W/images, and gives it to TensorBoard and Weights & Biases."""
  if not multihost.is_primary():
    return
  png = pictures.encode_png(sheet, {"what": what, "stage": run.stage.name, "step": step})
  folder = run.workdir / "images"
  folder.mkdir(exist_ok=True)
  with replace_file(folder / f"{run.stage.name}-{step:06d}.png") as file:
    file.write(png)
  log.record_picture(step, what, sheet, png)
