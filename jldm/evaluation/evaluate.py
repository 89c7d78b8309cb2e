"""Judges the samples and the reconstructions of a workdir; the record holds all that a figure depends on.

  W/evaluation/<step>.json               of the denoiser at that step
  W/evaluation/autoencoder-<step>.json   of the autoencoder
  W/evaluation/features-<hash>.npz       of real pictures, under a hash of the pictures and the extractor

The same checkpoint, options and machine give the same bytes.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import importlib.metadata
import json
from pathlib import Path
import platform
from typing import Any, NamedTuple

import jax
import numpy as np

from jldm.config.experiment import Evaluation, Experiment, Sampling
from jldm.config.presets import sampling_to_dict
from jldm.core.errors import UserError
from jldm.core.files import replace_file
from jldm.core.shapes import batch_rows
from jldm.core.specs import Loaded as LoadedCodec
from jldm.data.buckets import Buckets
from jldm.data.dataset import Dataset, check_dataset
from jldm.data.source import Source
from jldm.distributed import sharding
from jldm.evaluation import captions, features, judge as judging
from jldm.evaluation.captions import Captioned
from jldm.evaluation.judge import Judge, Record, Sets
from jldm.inference.generate import Request, generate
from jldm.inference.model import Model, conditioner_of_kind
from jldm.interop import safetensors
from jldm.media import sheets
from jldm.metrics import intervals, memorisation, perceptual
from jldm.metrics.extractors.extractor import EXTRACTORS, LoadedExtractor, find_extractor, load_extractor
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.text import TextConditioner

MOST_REAL = 50_000  # training pictures in the reference, at most
PACKAGES = ("jldm", "jax", "jaxlib", "flax", "numpy", "scipy")
FEWEST = 20  # samples
SHOWN = 16  # pictures on a sheet


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
  """How many pictures are drawn, how, and by which metrics they are judged.

  sampling: None for that of the experiment.   reference: how many training pictures to compare with, at most.
  left_out: the reason for each metric that was left out before anything was known of the features.
  """

  n: int = 1000
  seed: int = 0
  sampling: Sampling | None = None
  metrics: tuple[str, ...] = judging.USUAL
  left_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
  reference: int = MOST_REAL
  batch_size: int = 250
  devices: sharding.Devices = None


class RealImages(NamedTuple):
  """The real pictures that samples are compared with.

  judge: their features.   record: where they and their features come from, as JSON.
  captioned: the captions that samples are given; None if the data have none.
  """

  sets: Sets
  judge: Judge
  extractor: LoadedExtractor
  record: Record
  captioned: Captioned | None = None


def open_extractor(evaluation: Evaluation) -> LoadedExtractor:
  """The extractor that an experiment names, with its file of weights if it has one.

  Raises:
    UserError: no extractor is named, its name is unknown, or its weights do not fit.
  """
  if not evaluation.extractor:
    known = ", ".join(f"{name} ({each.preprocessing})" for name, each in sorted(EXTRACTORS.items()))
    raise UserError(f"no extractor is named, and none fits all data; give --extractor, one of: {known}")
  extractor = find_extractor(evaluation.extractor)
  if not evaluation.weights:
    return load_extractor(extractor)
  path = Path(evaluation.weights)
  return load_extractor(extractor, safetensors.read(path), safetensors.read_header(path).metadata)


def sample_shape(data: Dataset) -> tuple[int, int, int]:
  """The shape (H, W, C) of samples: that of the data set's first spec."""
  return dict(data.specs[0])["image"].shape


def open_splits(data: Dataset) -> tuple[Source, Source]:
  """The training and the held-out pictures of the shape of samples, without augmentation."""
  data = data.without_augmentation()
  train, held_out = (source_of_sample_shape(data.open(split), data) for split in (data.train, data.held_out))
  return train, held_out


def source_of_sample_shape(source: Source | Buckets, data: Dataset) -> Source:
  """The pictures of a source that have the shape of samples.

  Raises:
    UserError: there are none.
  """
  if not isinstance(source, Buckets):
    return source
  height, width, _ = sample_shape(data)
  shapes = [bucket[np.array([0])]["image"].shape[1:3] for bucket in source.sources]
  if (height, width) not in shapes:
    known = ", ".join(f"{h}x{w}" for h, w in shapes)
    raise UserError(f"no picture has the {height}x{width} of samples; the data set has {known}")
  return source.sources[shapes.index((height, width))]


def check_evaluation(
  experiment: Experiment, extractor: LoadedExtractor, settings: EvaluationSettings
) -> None:
  """Raises a UserError if the pictures are too few for the extractor, or nothing is held out."""
  data = check_dataset(experiment.data)
  if settings.n < FEWEST:
    raise UserError(f"n={settings.n}; expected at least {FEWEST} pictures")
  if data.train == data.held_out:
    raise UserError(
      f"data.train and data.held_out are both {data.train!r}, so nothing is held out; "
      "name two splits, such as 'train[:95%]' and 'train[95%:]'"
    )
  width = extractor.width(sample_shape(data))
  if "frechet" in settings.metrics:
    judging.check_sample_count(settings.n, width)


def check_pictures(model: Model) -> None:
  """Raises a UserError unless the model draws pictures alone."""
  if model.parts:
    raise UserError(
      f"samples have several parts ({', '.join(model.parts)}), which no metric covers; "
      "expected a model that draws pictures alone"
    )


def prepare_real_images(
  experiment: Experiment, extractor: LoadedExtractor, settings: EvaluationSettings, folder: Path
) -> RealImages:
  """Opens the data and extracts the features that samples are compared with, or reads them from `folder`.

  Raises:
    UserError: the data are missing, too few, or do not fit the extractor.
  """
  check_evaluation(experiment, extractor, settings)
  data = experiment.data
  train, held_out = open_splits(data)
  sets = judging.choose_real_sets(train, held_out, settings.n, settings.reference)
  reference, real = (
    features.cached_features(folder, extractor, *pictures, settings.devices)
    for pictures in (sets.reference, sets.real)
  )
  from_training = sets.real.source is train
  record = {
    "extractor": extractor.record() | {"width": reference.features.shape[1], "distance": extractor.distance},
    "reference": {"split": data.train, "n": len(reference)},
    "real": {"split": data.train if from_training else data.held_out, "n": len(real)},
  }
  judge = judging.make_judge(reference, real, settings.metrics)
  judge = judge._replace(left_out={**settings.left_out, **judge.left_out})
  captioned = captions.open_captions(data, experiment.evaluation, settings.n)
  return RealImages(sets, judge, extractor, record, captioned)


class EvaluatedSamples(NamedTuple):
  images: np.ndarray  # uint8 [N, H, W, C]
  labels: np.ndarray  # int32 [N]
  features: features.Features


def generate_samples(
  model: Model, params: dict, real: RealImages, settings: EvaluationSettings, progress: Any = iter
) -> EvaluatedSamples:
  """Draws settings.n samples, with labels in the proportion of the reference, and extracts their features.

  A model that reads captions is given those of real pictures, with their labels.
  """
  labels = judging.proportional_labels(real.judge.reference.labels, settings.n)
  label, text = (conditioner_of_kind(model, kind) for kind in (ClassLabel, TextConditioner))
  given = {}
  if text and real.captioned:
    labels, given = real.captioned.labels, {text: real.captioned.captions}
  given |= {label: labels} if label else {}
  request = Request(n=settings.n, seed=settings.seed, given=given)
  options = {"batch_size": settings.batch_size, "devices": settings.devices, "progress": progress}
  images = generate(model, params, request, settings.sampling, **options).data
  return EvaluatedSamples(
    images, labels, features.features_of_images(real.extractor, images, labels, settings.devices)
  )


def judge_samples(
  model: Model,
  samples: EvaluatedSamples,
  real: RealImages,
  settings: EvaluationSettings,
  real_scores: dict | None = None,
) -> Record:
  """The record of samples; `real_scores` are those of real pictures, computed here by default."""
  sampling = {"n": settings.n, "seed": settings.seed} | sampling_to_dict(settings.sampling or model.sampling)
  left_out = {"left_out": real.judge.left_out} if real.judge.left_out else {}
  metrics = real.judge.compare_with_real(samples.features, real_scores)
  captioned = real.captioned
  if captioned and conditioner_of_kind(model, TextConditioner):
    sampling["captions"] = captioned.record
    if captioned.scorer:
      metrics |= captions.judge_captions(
        captioned.scorer, samples.images, captioned.images, captioned.captions
      )
  return {"samples": sampling} | real.record | {"metrics": metrics} | left_out


class AuditResult(NamedTuple):
  """The record of an audit, and its most suspicious pairs as a sheet.

  The sheet has rows of samples; below each row are the nearest training and the nearest held-out pictures.
  """

  record: Record
  sheet: np.ndarray


def audit_memorisation(
  samples: EvaluatedSamples, real: RealImages, settings: EvaluationSettings, folder: Path
) -> AuditResult | None:
  """Tests whether samples copy training pictures; None if too few pictures are held out for that."""
  sets, judge = real.sets, real.judge
  if len(sets.held_out.rows) < memorisation.FEWEST:
    return None
  train, train_rows, held_out = judge.reference, sets.reference.rows, judge.real
  if sets.real.source is sets.reference.source:  # the real pictures were trained on too
    train = features.concatenate_features(judge.reference, judge.real)
    train_rows = np.concatenate([sets.reference.rows, sets.real.rows])
    held_out = features.cached_features(folder, real.extractor, *sets.held_out, settings.devices)
  audit = memorisation.audit(samples.features.features, train.features, held_out.features, SHOWN)
  pairs = dataclasses.replace(
    audit.pairs, train=train_rows[audit.pairs.train], held_out=sets.held_out.rows[audit.pairs.held_out]
  )
  columns = {name: column.tolist() for name, column in dataclasses.asdict(pairs).items()}
  record = {name: value for name, value in dataclasses.asdict(audit).items() if name != "pairs"}
  record |= {"n": len(samples.features), "trained_on": len(train), "held_out": len(held_out)}
  record["pairs"] = [dict(zip(columns, pair)) for pair in zip(*columns.values())]
  return AuditResult(record, pairs_sheet(samples.images, sets, pairs))


def pairs_sheet(images: np.ndarray, sets: Sets, pairs: memorisation.SuspectPairs) -> np.ndarray:
  """Rows of samples, of their nearest training pictures and of their nearest held-out pictures."""
  train = sets.reference.source[pairs.train]["image"]
  held_out = sets.held_out.source[pairs.held_out]["image"]
  columns = SHOWN // 2
  rows = [
    group[start : start + columns]
    for start in range(0, len(pairs.sample), columns)
    for group in (images[pairs.sample], train, held_out)
  ]
  return sheets.tile_rows(rows, sheets.sheet_scale(images))


@functools.partial(jax.jit, static_argnums=0)
def reconstruct_batch(model: Model, codec: dict, images: jax.Array) -> jax.Array:
  """Encodes images [B, H, W, C] in [-1, 1] to the mean of their latents and decodes it."""
  loaded = LoadedCodec(model.codec, codec)
  return codecs.decode_latents(loaded, codecs.encode_mean(loaded, {"image": images}))


class Reconstructions(NamedTuple):
  originals: np.ndarray  # uint8 [N, H, W, C]
  images: np.ndarray  # uint8 [N, H, W, C]
  labels: np.ndarray  # int32 [N]
  values: dict[str, np.ndarray]  # float64 [N] by metric
  captions: list[str]  # none if the data have none


def reconstruct_held_out(
  model: Model, codec: dict, real: RealImages, settings: EvaluationSettings, lpips: Any = None
) -> Reconstructions:
  """Reconstructs at most settings.n held-out pictures; `lpips` are weights of jldm.metrics.perceptual."""
  source, rows = real.sets.held_out
  rows = rows[: settings.n]
  mesh, batch_size = sharding.mesh_for_samples(len(rows), settings.batch_size, settings.devices)
  codec = sharding.replicate(mesh, codec)
  originals = source[rows]

  def batches() -> Iterator[tuple[jax.Array, int]]:
    for start in range(0, len(rows), batch_size):
      batch = originals["image"][batch_rows(start, batch_size, len(rows))]
      yield codecs.pixels(sharding.shard_batch(mesh, batch)), len(rows) - start

  distance = None
  if lpips is not None:
    distance = jax.jit(functools.partial(perceptual.lpips_distance, sharding.replicate(mesh, lpips)))
  values, images = judging.measure_reconstructions(
    lambda images: reconstruct_batch(model, codec, images), batches(), distance
  )
  texts = captions.texts_of(originals) if captions.CAPTION in originals else []
  return Reconstructions(originals["image"], images, originals["label"], values, texts)


def judge_reconstructions(
  reconstructions: Reconstructions, real: RealImages, settings: EvaluationSettings
) -> Record:
  """The record of reconstructions: mean metrics of all and of each class, and distances of their features.

  The distances stand with those of the originals, against the same reference.
  """
  labels = reconstructions.labels
  metrics = mean_scores(reconstructions, np.ones(len(labels), bool))
  left_out = {
    name: "some reconstructions are exact" for name in reconstructions.values.keys() - metrics.keys()
  }
  names = [name for name in real.judge.metrics if name in ("frechet", "kid")]
  width = real.judge.reference.features.shape[1]
  if "frechet" in names and len(labels) <= width:
    names.remove("frechet")
    left_out["reconstruction_frechet"] = (
      f"only {len(labels)} pictures are held out, and features have {width} dimensions"
    )
  found, originals = (
    features.features_of_images(real.extractor, images, labels, settings.devices)
    for images in (reconstructions.images, reconstructions.originals)
  )
  scores = real.judge._replace(real=originals, metrics=tuple(names)).compare_with_real(found)
  metrics |= {f"reconstruction_{name}": score for name, score in scores.items()}
  if real.captioned and real.captioned.scorer:
    pictures = (reconstructions.images, reconstructions.originals)
    metrics |= captions.judge_captions(
      real.captioned.scorer, *pictures, reconstructions.captions, "reconstruction_caption"
    )
  classes = {
    str(label): mean_scores(reconstructions, labels == label) for label in np.unique(labels[labels >= 0])
  }
  record = real.record | {"metrics": metrics, "classes": classes}
  return record | {"left_out": left_out} if left_out else record


def mean_scores(reconstructions: Reconstructions, chosen: np.ndarray) -> Record:
  """The mean of each metric with its interval, over chosen pictures, bool [N]; infinite ones are left out."""
  count = int(chosen.sum())
  return {
    name: judging.interval_record(intervals.mean_interval(values[chosen]), count)
    for name, values in reconstructions.values.items()
    if count > 1 and np.isfinite(values[chosen]).all()
  }


def worst_reconstructions(reconstructions: Reconstructions) -> np.ndarray:
  """A sheet of the pictures with the lowest PSNR, each above its reconstruction."""
  worst = np.argsort(reconstructions.values["psnr"], kind="stable")[:SHOWN]
  originals, images = reconstructions.originals[worst], reconstructions.images[worst]
  return sheets.stack_pairs(originals, images, SHOWN // 2, sheets.sheet_scale(images))


def package_versions() -> Record:
  """The versions of packages and of Python, and the device."""
  device = jax.devices()[0]
  return {name: importlib.metadata.version(name) for name in PACKAGES} | {
    "python": platform.python_version(),
    "device": f"{len(jax.devices())} {device.platform} {device.device_kind}",
  }


def write_evaluation(path: Path, record: Record) -> None:
  """Writes a record whole or not at all; ValueError for a number that is not finite."""
  with replace_file(path) as file:
    file.write((json.dumps(record, indent=2, allow_nan=False) + "\n").encode())
