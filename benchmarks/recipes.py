"""Fashion-MNIST at equal cost: recipes for a number of CPU-seconds of one thread, compilation included.

  taskset -c 1 python -m benchmarks.recipes search runs/recipes [--only NAME …] [--seeds N …]   the recipes, on held-out pictures
  python -m benchmarks.recipes final runs/240 [--set PATH=VALUE …]   configs/fashion_mnist.py, against the test split
  python -m benchmarks.recipes ways runs/240 [--test]                the same parameters drawn in other ways
  python -m benchmarks.recipes noise                                 real pictures against real ones

`search` trains in one process what its folder lacks: XLA on one thread, nothing compiled before;
its CPU-seconds are those of compiling, training and encoding, without what all recipes share
(imports, decoding the data, checkpoints). `final` runs train.py in a process of its own, pinned to
a core, and counts all that the system says it used.  A score is of 1,000 samples, 100 a class,
drawn as the config says, in the features of jldm/metrics/extractors/fashion.py: the Fréchet
distance to all of the reference, precision, recall, density and coverage against its first 5,000,
and the share that the classifier finds in the class asked for.
"""

import argparse
from collections.abc import Callable
import functools
import itertools
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.cli.train import load_config
from jldm.config import presets
from jldm.config.experiment import Experiment, Sampling, Stage
from jldm.config.override import override
from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.core.specs import Loaded
from jldm.data.batches import batches, in_order
from jldm.data.source import Arrays, Source
from jldm.data.tfds import ImageData
from jldm.distributed import sharding
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.inference.model import build_model
from jldm.media import images as pictures, sheets
from jldm.metrics.extractors import fashion
from jldm.metrics.frechet import Moments, feature_moments, frechet
from jldm.metrics.image import psnr
from jldm.metrics.manifold import manifold
from jldm.models.autoencoders.posterior import Gaussian
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import ImageCodec
from jldm.train.loop import End, fit
from jldm.train.state import init_state
from jldm.train.step import make_step

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "fashion_mnist.py"
CORE = 1
SAMPLES, NEIGHBOURHOOD = 1000, 5000  # pictures drawn; pictures of the reference for precision and recall
SEARCH = ("data.train=train[:30000]",)
REFERENCE = "train[55000:]"
SIZES, DRAWS = (500, 1000, 2000, 5000, 10000), 5  # of the noise
LABELS = np.repeat(np.arange(fashion.CLASSES), SAMPLES // fashion.CLASSES).astype(np.int32)


def stage(name: str, steps: int, batch_size: int, further: dict | None = None, **network) -> tuple[str, ...]:
  """`--set` settings of a stage: its length, its batch, fields of its network, and further ones by path."""
  values = {"steps": steps, "batch_size": batch_size}
  values |= {f"objective.network.{field}": value for field, value in network.items()} | (further or {})
  return tuple(f"{name}.{path}={value}" for path, value in values.items())


def autoencoder(steps: int, batch_size: int, **network) -> tuple[str, ...]:
  return stage("autoencoder", steps, batch_size, **network)


def denoiser(
  steps: int, batch_size: int, further: dict | None = None, of: str = "f4 w32", **network
) -> tuple[str, tuple[str, ...]]:
  """The autoencoder's name and the settings of the denoiser."""
  return of, stage("denoiser", steps, batch_size, further, **network)


ONE_SCALE = {"patch": 4, "widths": (32,)}
AUTOENCODERS: dict[str, tuple[str, ...]] = {
  "f4 w32": autoencoder(3200, 16, **ONE_SCALE),
  "f4 w32, longer": autoencoder(5500, 16, **ONE_SCALE),
  "f4 w32 c8": autoencoder(3200, 16, **ONE_SCALE, latent_channels=8),
  "f4 w16-32": autoencoder(2500, 16),
}
LIGHTNING = {"objective.network.block": "ModulatedBlock(heads=4, rms_norm=True, swiglu=True)"}
MUON = {
  "optimizer": "Muon(schedule=WarmupCosine(peak=4e-3, warmup_steps=200), b2=0.99, "
  "hidden='(attention|mlp)/.*kernel$')"
}
CONVOLUTIONS = "UNet(widths=(32, 64), resnets=1, attention=(False, True), heads=4, classes=10, groups=8)"
DENOISERS: dict[str, tuple[str, tuple[str, ...]]] = {
  "DiT 128x4, batch 16": denoiser(3800, 16),
  "Muon": denoiser(1900, 16, MUON),
  "batch 8": denoiser(5700, 8),
  "8 channels": denoiser(3800, 16, of="f4 w32 c8"),
  "two scales in the autoencoder": denoiser(3800, 16, of="f4 w16-32"),
  "two scales, batch 8": denoiser(5700, 8, of="f4 w16-32"),
  "more autoencoder": denoiser(2700, 16, of="f4 w32, longer"),
  "longer average": denoiser(3800, 16, {"ema.decay": 0.999}),
  "LightningDiT's block": denoiser(3500, 16, LIGHTNING, rotary=True),
  "64 tokens": denoiser(2300, 8, patch=1),
  "U-Net 32-64": denoiser(1900, 16, {"objective.network": CONVOLUTIONS}),
}


def experiment(settings: tuple[str, ...]) -> Experiment:
  """The config with `--set` settings."""
  found = load_config(str(CONFIG))
  for setting in settings:
    path, _, text = setting.partition("=")
    found = override(found, path, text)
  return found


ONE_THREAD = {
  "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=1",
  "OMP_NUM_THREADS": "1",
  "OPENBLAS_NUM_THREADS": "1",
}


def train(workdir: Path, settings: tuple[str, ...]) -> float:
  """CPU-seconds of `train.py` on one pinned thread with an empty compilation cache, now or when it was
  run before.
  """
  path = workdir / "cpu_seconds.json"
  if path.is_file():
    return json.loads(path.read_text())
  command = [
    sys.executable,
    str(ROOT / "train.py"),
    "--config",
    str(CONFIG),
    "--workdir",
    str(workdir),
    "--devices",
    "1",
  ]
  command += [word for setting in settings for word in ("--set", setting)]
  with tempfile.TemporaryDirectory() as cache:
    environment = os.environ | ONE_THREAD | {"JAX_COMPILATION_CACHE_DIR": cache}
    pin = lambda: os.sched_setaffinity(0, {CORE})
    process = subprocess.Popen(command, env=environment, preexec_fn=pin)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise SystemExit(f"train.py ended with {process.returncode}")
  path.write_text(json.dumps(usage.ru_utime + usage.ru_stime) + "\n")
  return json.loads(path.read_text())


class Reference:
  """The pictures of a split that samples are compared with, and their features."""

  def __init__(self, data: ImageData, split: str):
    source = data.open(split)
    whole = source[np.arange(len(source))]
    self.images, self.labels = whole["image"], whole["label"]
    self.features = fashion.fashion_features(self.images)
    self.moments: Moments = feature_moments(self.features)

  def distance(self, images: np.ndarray) -> float:
    return frechet(feature_moments(fashion.fashion_features(images)), self.moments)

  def score(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    found, logits = fashion.features_and_logits(images)
    agreement = float(np.mean(logits.argmax(-1) == labels))
    neighbours = manifold(self.features[:NEIGHBOURHOOD], found)
    return {"frechet": frechet(feature_moments(found), self.moments)} | neighbours | {"agreement": agreement}


def drawn(workdir: Path, sampling: Sampling | None = None) -> np.ndarray:
  model, params = load(workdir)
  return generate(model, params, Request(n=len(LABELS), given={"label": LABELS}), sampling, devices=1).data


def quick(stage: Stage, source: Source, frozen: Any, seed: int = 0) -> tuple[Any, float]:
  """Averaged parameters of a stage trained on `source` in this process, and the CPU-seconds of
  compiling and training.
  """
  start = time.process_time()
  tx, (key_init, key_steps) = stage.optimizer.build(stage.steps), jax.random.split(jax.random.key(seed))
  rows = batches(source, seed, stage.batch_size, 0, stage.steps)
  first = next(iter(batches(source, seed, stage.batch_size, 0, 1)))
  init = lambda key, batch, frozen: init_state(*stage.objective.init(key, batch, frozen), tx, stage.ema)
  state = jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})(key_init, first, frozen)
  state = fit(
    make_step(stage.objective.loss, tx, stage.ema), state, rows, key_steps, frozen, End(stage.steps), ()
  )
  return jax.block_until_ready(state.ema[0]), time.process_time() - start


class Codec(NamedTuple):
  """A trained autoencoder, the training set's latents, what it costs and is worth, and 1,000
  reconstructions.
  """

  params: dict
  latents: Arrays
  scores: dict
  back: np.ndarray


def codec(found: Experiment, source: Arrays, held_out: np.ndarray, seed: int) -> Codec:
  """Stage 1: trains, encodes the training set and measures the latents."""
  stage, network = found.stage("autoencoder"), found.stage("autoencoder").objective.network
  params, used = quick(stage, source, {}, seed)
  start = time.process_time()
  encode = jax.jit(lambda images: ImageCodec(network).encode({"params": params}, {"image": images}))
  parts = [[np.asarray(x)[:n] for x in encode(batch["image"])] for batch, n in in_order(source, 500)]
  mean, log_variance = (np.concatenate(each) for each in zip(*parts))
  whole = {"params": params} | codecs.measure_statistics([Gaussian(mean, log_variance)])._asdict()
  used += time.process_time() - start
  value, back = reconstructed(network, whole, held_out)
  scores = {"autoencoder_steps": stage.steps, "psnr": value, "seconds": used}
  return Codec(
    whole, Arrays({"mean": mean, "log_variance": log_variance, "label": source.arrays["label"]}), scores, back
  )


def reconstructed(network: Any, codec: dict, images: np.ndarray) -> tuple[float, np.ndarray]:
  """PSNR of pictures put through the autoencoder, and what comes back, uint8, of latents drawn for them."""

  @jax.jit
  def both(codec, images, keys):
    loaded = Loaded(ImageCodec(network), codec)
    posterior = loaded.model.encode(codec, {"image": images})
    drawn = codecs.decode_latents(loaded, codecs.sample_latents(loaded, posterior, keys))
    return loaded.model.decode(codec, posterior.mean), drawn

  certain, back = both(codec, images, row_keys(jax.random.key(0), np.arange(len(images))))
  return float(psnr(codecs.pixels(jnp.asarray(images)), certain).mean()), pictures.to_uint8(back)


def recipe(found: Experiment, trained: Codec, seed: int) -> tuple[dict, np.ndarray]:
  """Stage 2 in the latents of a codec: its facts, and the samples."""
  model, request = build_model(found), Request(n=len(LABELS), seed=seed, given={"label": LABELS})
  frozen = {"codec": Loaded(model.codec, trained.params)}
  params, used = quick(found.stage("denoiser"), trained.latents, frozen, seed)
  images = generate(model, params | {"codec": trained.params}, request, devices=1).data
  return {"denoiser_steps": found.stage("denoiser").steps, "seconds": used}, images


def kept(path: Path, make: Callable[[], tuple[dict, np.ndarray]]) -> tuple[dict, np.ndarray]:
  """Facts and pictures of `make`, which is called only where PATH.json, written last, is missing."""
  facts, images = Path(f"{path}.json"), Path(f"{path}.npz")
  if not facts.is_file():
    scores, made = make()
    np.savez_compressed(images, images=made)
    facts.write_text(json.dumps(scores) + "\n")
  with np.load(images, allow_pickle=False) as stored:
    return json.loads(facts.read_text()), stored["images"]


def write_grid(path: Path, images: np.ndarray, labels: np.ndarray, what: str, columns: int = 10) -> None:
  shown = np.concatenate([np.flatnonzero(labels == c)[:columns] for c in np.unique(labels)])
  pictures.write_png(path, sheets.class_rows(images[shown], labels[shown], columns), {"what": what})


def row(scores: dict) -> str:
  """One line of the table."""
  cells = [scores["recipe"], scores.get("autoencoder", ""), str(scores.get("seed", ""))]
  number = lambda name, digits: f"{scores[name]:.{digits}f}" if name in scores else ""
  cells += [
    number("psnr", 1),
    number("reconstruction", 3),
    number("autoencoder_steps", 0),
    number("denoiser_steps", 0),
  ]
  cells += [number("frechet", 3)] + [
    number(name, 3) for name in ("precision", "recall", "density", "coverage", "agreement")
  ]
  return "| " + " | ".join(cells + [number("seconds", 0)]) + " |"


HEAD = (
  "| recipe | autoencoder | seed | PSNR, dB | its Fréchet | its steps | denoiser's steps | Fréchet | "
  "precision | recall "
  "| density | coverage | class | CPU-s |\n" + "|---" * 14 + "|"
)


def search(options: argparse.Namespace) -> None:
  """Recipes in this process, on one thread, an autoencoder trained once a seed; what lies in the
  folder is only scored.
  """
  options.folder.mkdir(parents=True, exist_ok=True)
  data = experiment(SEARCH).data
  reference, source = Reference(data, REFERENCE), data.open(data.train)
  shown = reference.images[:SAMPLES]
  train_codec = functools.cache(
    lambda of, seed: codec(experiment(SEARCH + AUTOENCODERS[of]), source, shown, seed)
  )
  print(HEAD, flush=True)
  for seed, name in itertools.product(options.seeds, options.only):
    of, settings = DENOISERS[name]
    found, path = experiment(SEARCH + AUTOENCODERS[of] + settings), options.folder / f"{name}, seed {seed}"
    first, back = kept(options.folder / f"autoencoder {of}, seed {seed}", lambda: train_codec(of, seed)[2:])  # noqa: B023
    second, images = kept(path, lambda: recipe(found, train_codec(of, seed), seed))  # noqa: B023 (used at once)
    write_grid(Path(f"{path}.png"), images, LABELS, name)
    scores = (
      {"recipe": name, "autoencoder": of, "seed": seed, "reconstruction": reference.distance(back)}
      | first
      | second
    )
    print(
      row(scores | reference.score(images, LABELS) | {"seconds": first["seconds"] + second["seconds"]}),
      flush=True,
    )


def final(options: argparse.Namespace) -> None:
  """The config as it is, trained in a process of its own and scored on the test split."""
  settings = tuple(options.set)
  found = experiment(settings)
  used = train(options.folder, settings)
  reference = Reference(found.data, "test")
  images = drawn(options.folder)
  write_grid(options.folder / "grid.png", images, LABELS, "configs/fashion_mnist.py")
  steps = {
    "autoencoder_steps": found.stage("autoencoder").steps,
    "denoiser_steps": found.stage("denoiser").steps,
  }
  model, params = load(options.folder)
  value, back = reconstructed(model.codec.network, params["codec"], reference.images[:SAMPLES])
  scores = {"recipe": options.folder.name, "psnr": value, "reconstruction": reference.distance(back)} | steps
  scores |= reference.score(images, LABELS) | {"seconds": used}
  (options.folder / "score.json").write_text(json.dumps(scores, indent=2) + "\n")
  print(f"{HEAD}\n{row(scores)}")


def ways(options: argparse.Namespace) -> None:
  """The same parameters drawn with other samplers and scales."""
  split = "test" if options.test else REFERENCE
  reference = Reference(experiment(()).data, split)
  for name, steps, scale in WAYS:
    sampling = Sampling(
      sampler=presets.make_sampler(name), steps=steps, guidance=presets.make_guidance(scale=scale)
    )
    images = drawn(options.folder, sampling)
    scores = {"recipe": f"{name}, {steps} steps", "autoencoder": f"{scale}"}
    print(row(scores | reference.score(images, LABELS)), flush=True)


WAYS = (
  ("dpmpp_2m", 10, 1.0),
  ("dpmpp_2m", 10, 1.25),
  ("dpmpp_2m", 10, 1.5),
  ("dpmpp_2m", 10, 2.0),
  ("dpmpp_2m", 20, 1.5),
  ("ddim", 10, 1.5),
  ("heun", 5, 1.5),
)


def noise(options: argparse.Namespace) -> None:
  """N pictures of a split against N others of the same split, drawn anew each time; and N of training
  against the test.
  """
  data = experiment(()).data
  train, test = (Reference(data, split) for split in ("train", "test"))
  rng = np.random.default_rng(options.seed)
  print(
    "| N | N against N others, mean | std | N against the test split, mean | std |\n|---|---|---|---|---|"
  )
  for size in SIZES:
    between, against = [], []
    for _ in range(DRAWS):
      rows = rng.permutation(len(train.features))
      one, other = (feature_moments(train.features[part]) for part in (rows[:size], rows[size : 2 * size]))
      between.append(frechet(one, other))
      against.append(frechet(one, test.moments))
    cells = [f"{f(values):.3f}" for values in (between, against) for f in (np.mean, np.std)]
    print(f"| {size} | " + " | ".join(cells) + " |", flush=True)
  rows = rng.permutation(len(train.features))[:SAMPLES]
  print(row({"recipe": "1,000 training pictures"} | test.score(train.images[rows], train.labels[rows])))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(dest="command", required=True)
  add = lambda call: commands.add_parser(call.__name__, help=call.__doc__)
  for call in (search, final, ways):
    add(call).add_argument("folder", type=Path)
  commands.choices["search"].add_argument(
    "--only", nargs="+", default=list(DENOISERS), choices=list(DENOISERS), metavar="NAME"
  )
  commands.choices["search"].add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
  commands.choices["final"].add_argument("--set", action="append", default=[])
  commands.choices["ways"].add_argument("--test", action="store_true", help="against the test split")
  add(noise).add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  os.environ |= ONE_THREAD  # before a device is touched
  sharding.configure(1)
  jax.config.update("jax_enable_compilation_cache", False)
  try:
    {call.__name__: call for call in (search, final, ways, noise)}[options.command](options)
  except UserError as error:
    parser.error(str(error))


if __name__ == "__main__":
  main()
