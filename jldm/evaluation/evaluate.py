"""A workdir's samples and reconstructions, judged: everything that a figure depends on stands beside it.

  W/evaluation/<step>.json               the denoiser's, of its step
  W/evaluation/autoencoder-<step>.json   the autoencoder's
  W/evaluation/features-<hash>.npz       of real pictures, under a hash of the pictures and the extractor

The same checkpoint, options and machine give the same bytes.
"""

from collections.abc import Iterator
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
from jldm.core.specs import Loaded as LoadedCodec
from jldm.data.buckets import Buckets
from jldm.data.source import Source
from jldm.distributed import sharding
from jldm.evaluation import features, judge as judging
from jldm.evaluation.judge import Judge, Record, Sets
from jldm.inference.generate import Request, generate
from jldm.inference.load import Model, conditioner_of_kind
from jldm.interop import safetensors
from jldm.media import images as pictures
from jldm.metrics import intervals, memorisation, perceptual
from jldm.metrics.extractors.extractor import EXTRACTORS, LoadedExtractor, find_extractor, load_extractor
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners.label import ClassLabel

MOST_REAL = 50_000  # training pictures that samples are compared with
PACKAGES = ("jldm", "jax", "jaxlib", "flax", "numpy", "scipy")
FEWEST = 20  # samples
SHOWN = 16  # pictures on a sheet


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
  """How many pictures are drawn and judged, and how; None is what the experiment says."""

  n: int = 1000
  seed: int = 0
  sampling: Sampling | None = None
  metrics: tuple[str, ...] = judging.USUAL
  reference: int = MOST_REAL
  batch_size: int = 250
  devices: sharding.Devices = None


class RealImages(NamedTuple):
  """The real pictures of a data set, and how samples are judged beside them."""

  sets: Sets
  judge: Judge
  loaded: LoadedExtractor
  told: Record


def open_extractor(evaluation: Evaluation) -> LoadedExtractor:
  """The extractor that an experiment names, with its file of weights, where there is one.

  Raises:
    UserError: it names none, one that is not known, or one whose weights do not fit.
  """
  if not evaluation.extractor:
    known = ", ".join(f"{name} ({each.preprocessing})" for name, each in sorted(EXTRACTORS.items()))
    raise UserError(f"no extractor is named, and none fits all data; give --extractor, one of: {known}")
  path = evaluation.weights and Path(evaluation.weights)
  return load_extractor(
    find_extractor(evaluation.extractor),
    *((safetensors.read(path), safetensors.read_header(path).metadata) if path else ()),
  )


def without_augmentation(data: Any) -> Any:
  """The same data with every label and nothing mirrored: what pictures are compared with."""
  usual = {"mirror": False, "labelled": 1.0, "labelled_times": 1}
  return dataclasses.replace(data, **{name: value for name, value in usual.items() if hasattr(data, name)})


def sample_shape(data: Any) -> tuple[int, int, int]:
  """(H, W, C) of what samples are like."""
  return dict(data.specs[0])["image"].shape


def source_of_sample_shape(source: Source | Buckets, data: Any) -> Source:
  """Of pictures of several shapes those of the data's first spec, which samples have."""
  if not isinstance(source, Buckets):
    return source
  height, width, _ = sample_shape(data)
  for bucket in source.sources:
    if bucket[np.array([0])]["image"].shape[1:3] == (height, width):
      return bucket
  raise UserError(f"no picture of {height}x{width}, the shape that samples have; there are others only")


def check_evaluation(experiment: Experiment, loaded: LoadedExtractor, how: EvaluationSettings) -> None:
  """Raises a UserError for too few pictures for the extractor, or data of which nothing is held out."""
  data = experiment.data
  if how.n < FEWEST:
    raise UserError(f"n={how.n}; expected at least {FEWEST} pictures")
  if data.train == data.held_out:
    raise UserError(
      f"data.train and data.held_out are both {data.train!r}: nothing is held out, and figures of what was trained "
      "on say little; name two splits, such as 'train[:95%]' and 'train[95%:]'"
    )
  width = loaded.width(sample_shape(data))
  if "frechet" in how.metrics:
    judging.check_sample_count(how.n, width)


def check_pictures(model: Model) -> None:
  """Raises a UserError unless the model draws pictures alone."""
  if model.parts:
    raise UserError(
      f"samples in parts ({', '.join(model.parts)}); expected a model that draws pictures alone: no figure is "
      "computed of several parts"
    )


def prepare_real_images(
  experiment: Experiment, loaded: LoadedExtractor, how: EvaluationSettings, folder: Path
) -> RealImages:
  """Opens the data and extracts what samples are compared with, or reads it from `folder`.

  Raises:
    UserError: data that are missing, too few, or do not fit the extractor.
  """
  check_evaluation(experiment, loaded, how)
  data = without_augmentation(experiment.data)
  train, held_out = (source_of_sample_shape(data.open(split), data) for split in (data.train, data.held_out))
  sets = judging.choose_real_sets(train, held_out, how.n, how.reference)
  reference, beside = (features.cached_features(folder, loaded, *split, how.devices) for split in sets[:2])
  set_aside = sets.real.source is train
  told = {
    "extractor": loaded.told() | {"width": reference.features.shape[1], "distance": loaded.distance},
    "reference": {"split": data.train, "n": len(reference)},
    "real": {"split": data.train if set_aside else data.held_out, "n": len(beside)},
  }
  return RealImages(sets, judging.make_judge(reference, beside, how.metrics), loaded, told)


class EvaluatedSamples(NamedTuple):
  images: np.ndarray  # uint8 [N, H, W, C]
  labels: np.ndarray
  found: features.Features


def generate_samples(
  model: Model, params: dict, among: RealImages, how: EvaluationSettings, progress: Any = iter
) -> EvaluatedSamples:
  """how.n samples, their labels in the proportion of the reference, and their features."""
  labels = judging.proportional_labels(among.judge.reference.labels, how.n)
  name = conditioner_of_kind(model, ClassLabel)
  request = Request(n=how.n, seed=how.seed, given={} if name is None else {name: labels})
  options = {"batch_size": how.batch_size, "devices": how.devices, "progress": progress}
  images = generate(model, params, request, how.sampling, **options).data
  return EvaluatedSamples(
    images, labels, features.features_of_images(among.loaded, images, labels, how.devices)
  )


def judge_samples(
  model: Model,
  samples: EvaluatedSamples,
  among: RealImages,
  how: EvaluationSettings,
  scores: dict | None = None,
) -> Record:
  """What samples are worth; `scores` are those of the real pictures where they are known."""
  drawn = {"n": how.n, "seed": how.seed} | sampling_to_dict(how.sampling or model.sampling)
  left_out = {"left_out": among.judge.left_out} if among.judge.left_out else {}
  return {"samples": drawn} | among.told | {"metrics": among.judge.beside(samples.found, scores)} | left_out


class AuditResult(NamedTuple):
  """What an audit found, and its pairs as a sheet: samples, below them the nearest training and the
  nearest held-out pictures.
  """

  told: Record
  sheet: np.ndarray


def audit_memorisation(
  samples: EvaluatedSamples, among: RealImages, how: EvaluationSettings, folder: Path
) -> AuditResult | None:
  """Whether samples are copies of training pictures, told by held-out ones; None where too few are held out."""
  sets, judge = among.sets, among.judge
  if len(sets.held_out.rows) < memorisation.FEWEST:
    return None
  aside = sets.real.source is sets.reference.source
  trained = features.concatenate_features(judge.reference, judge.real) if aside else judge.reference
  rows = np.concatenate([sets.reference.rows, sets.real.rows]) if aside else sets.reference.rows
  held_out = (
    features.cached_features(folder, among.loaded, *sets.held_out, how.devices) if aside else judge.real
  )
  found = memorisation.audit(samples.found.features, trained.features, held_out.features, SHOWN)
  pairs = dataclasses.replace(
    found.pairs, train=rows[found.pairs.train], held_out=sets.held_out.rows[found.pairs.held_out]
  )
  told = {name: value for name, value in dataclasses.asdict(found).items() if name != "pairs"}
  told |= {"n": len(samples.found), "trained_on": len(trained), "held_out": len(held_out)}
  columns = {name: each.tolist() for name, each in dataclasses.asdict(pairs).items()}
  told["pairs"] = [dict(zip(columns, row)) for row in zip(*columns.values())]
  real = sets.reference.source[pairs.train], sets.held_out.source[pairs.held_out]
  each = (samples.images[pairs.sample], *(batch["image"] for batch in real))
  lines = [some[i : i + SHOWN // 2] for i in range(0, len(pairs.sample), SHOWN // 2) for some in each]
  return AuditResult(
    told, pictures.tile_rows(lines, max(1, round(pictures.CELL / min(samples.images.shape[1:3]))))
  )


@functools.partial(jax.jit, static_argnums=0)
def reconstruct_batch(model: Model, codec: dict, images: jax.Array) -> jax.Array:
  """Images [B, H, W, C] in [-1, 1] through the mean of their latents and back."""
  loaded = LoadedCodec(model.codec, codec)
  return codecs.decode_latents(loaded, codecs.encode_mean(loaded, {"image": images}))


class Reconstructions(NamedTuple):
  originals: np.ndarray  # uint8 [N, H, W, C]
  images: np.ndarray
  labels: np.ndarray
  values: dict[str, np.ndarray]  # float64 [N] by name


def reconstruct_held_out(
  model: Model, codec: dict, among: RealImages, how: EvaluationSettings, lpips: Any = None
) -> Reconstructions:
  """At most how.n held-out pictures and what comes back of them; `lpips` are weights of jldm.metrics.perceptual."""
  source, rows = among.sets.held_out
  rows = rows[: how.n]
  mesh, batch_size = sharding.mesh_for_samples(len(rows), how.batch_size, how.devices)
  codec = sharding.replicate(mesh, codec)
  whole = source[rows]

  def batches() -> Iterator[tuple[jax.Array, int]]:
    for start in range(0, len(rows), batch_size):
      here = np.minimum(np.arange(start, start + batch_size), len(rows) - 1)
      yield codecs.pixels(sharding.shard_batch(mesh, whole["image"][here])), len(rows) - start

  distance = (
    None
    if lpips is None
    else jax.jit(functools.partial(perceptual.lpips_distance, sharding.replicate(mesh, lpips)))
  )
  values, backs = judging.measure_reconstructions(
    lambda images: reconstruct_batch(model, codec, images), batches(), distance
  )
  return Reconstructions(whole["image"], backs, whole["label"], values)


def judge_reconstructions(back: Reconstructions, among: RealImages, how: EvaluationSettings) -> Record:
  """How near reconstructions are, in all and by class, and how far off their Fréchet distance is
  beside the originals'.
  """
  means = lambda rows: {
    name: judging.interval_record(intervals.mean_interval(value[rows]), int(rows.sum()))
    for name, value in back.values.items()
    if np.isfinite(value[rows]).all() and rows.sum() > 1
  }
  metrics, left_out = means(np.ones(len(back.labels), bool)), {}
  left_out |= {name: "some pictures come back exactly" for name in back.values.keys() - metrics.keys()}
  judge = among.judge._replace(
    metrics=tuple(name for name in among.judge.metrics if name in ("frechet", "kid"))
  )
  width = judge.reference.features.shape[1]
  if "frechet" in judge.metrics and len(back.labels) <= width:
    left_out["reconstruction_frechet"] = (
      f"{len(back.labels)} pictures are held out, where features are {width} wide"
    )
    judge = judge._replace(metrics=tuple(name for name in judge.metrics if name != "frechet"))
  of = lambda images: features.features_of_images(among.loaded, images, back.labels, how.devices)
  found, originals = of(back.images), of(back.originals)
  scores = judge._replace(real=originals).beside(found)
  classes = {str(label): means(back.labels == label) for label in np.unique(back.labels[back.labels >= 0])}
  told = {
    "metrics": metrics | {f"reconstruction_{name}": each for name, each in scores.items()},
    "classes": classes,
  }
  return among.told | told | ({"left_out": left_out} if left_out else {})


def worst_reconstructions(back: Reconstructions) -> np.ndarray:
  """A sheet of the pictures that come back worst by PSNR, each above its reconstruction."""
  rows = np.argsort(back.values["psnr"], kind="stable")[:SHOWN]
  scale = max(1, round(pictures.CELL / min(back.images.shape[1:3])))
  return pictures.stack_pairs(back.originals[rows], back.images[rows], SHOWN // 2, scale)


def package_versions() -> Record:
  found = {name: importlib.metadata.version(name) for name in PACKAGES}
  device = jax.devices()[0]
  return found | {
    "python": platform.python_version(),
    "device": f"{len(jax.devices())} {device.platform} {device.device_kind}",
  }


def write_evaluation(path: Path, told: Record) -> None:
  """Whole or not at all; a figure that is not finite is a bug, not data."""
  with replace_file(path) as file:
    file.write((json.dumps(told, indent=2, allow_nan=False) + "\n").encode())
