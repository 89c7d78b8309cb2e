"""Fashion-MNIST at equal cost: recipes for a number of CPU-seconds of one thread, compilation included.

  taskset -c 1 python -m benchmarks.recipes search runs/recipes [--only NAME …]   all recipes, on held-out training pictures
  python -m benchmarks.recipes final runs/240 [--set PATH=VALUE …]   configs/fashion_mnist.py, against the test split
  python -m benchmarks.recipes ways runs/240 [--test]                the same parameters drawn in other ways
  python -m benchmarks.recipes noise                                 real pictures against real ones

`search` trains in one process: XLA on one thread, nothing compiled before; its CPU-seconds are those of compiling,
training and encoding, without what all recipes share (imports, decoding the data).  `final` runs train.py in a process of
its own, pinned to a core, and counts all that the system says it used.  A score is of 1,000 samples, 100 a class, seed 0,
in the features of jldm/metrics/extractors/fashion.py: the Fréchet distance to all of the reference, precision, recall,
density and coverage against its first 5,000, and the share that the classifier finds in the class asked for.
"""

import argparse
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

from jldm import named, pictures, pipeline, sharding
from jldm.cli.train import load_config
from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.data.batches import batches, in_order
from jldm.data.source import Arrays, Source
from jldm.data.tfds import ImageData
from jldm.experiment import Experiment, Stage, override
from jldm.metrics.extractors import fashion
from jldm.metrics.frechet import Moments, frechet, statistics
from jldm.metrics.image import psnr
from jldm.metrics.manifold import manifold
from jldm.models import codec as codecs
from jldm.models.autoencoders.posterior import Gaussian
from jldm.train.loop import fit
from jldm.train.state import init_state
from jldm.train.step import make_step

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "fashion_mnist.py"
CORE = 1
SAMPLES, NEIGHBOURHOOD = 1000, 5000  # pictures drawn; pictures of the reference for precision and recall
SEARCH = ("data.train=train[:30000]", "data.held_out=train[55000:56000]", "sampling.steps=10")
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
  steps: int, batch_size: int, further: dict | None = None, peak: float = 2e-3, of: str = "f4 w32", **network
) -> tuple[str, tuple[str, ...]]:
  """The autoencoder's name and the settings of the denoiser, the rate's peak among them."""
  return of, stage("denoiser", steps, batch_size, {"optimizer.schedule.peak": peak} | (further or {}), **network)


AUTOENCODERS: dict[str, tuple[str, ...]] = {  # some 40 s of training each
  "f4 w32": autoencoder(1700, 16),
  "f4 w48": autoencoder(870, 16, widths=(48,)),
  "f8 c16": autoencoder(850, 32, widths=(32, 64), latent_channels=16),
  "f4 w32 c8": autoencoder(1700, 16, latent_channels=8),
}
SMALL = dict(width=128, depth=4, unroll=4)
COSINE = {"objective.process": "Cosine()", "objective.parametrization": "Predict('v')", "objective.times": "Uniform()"}
EDM = {"objective.process": "EDM()", "objective.parametrization": "Precondition()",
       "objective.times": "LogNormalSigma(-0.5, 1.2)"}
CONVOLUTIONS = "UNet(widths=(32, 64), resnets=1, attention=(False, True), heads=4, classes=10, groups=8)"
DENOISERS: dict[str, tuple[str, tuple[str, ...]]] = {  # some 45 s of training each
  "DiT 192x4, batch 32": denoiser(300, 32, width=192, depth=4, unroll=4),
  "DiT 128x4, batch 32": denoiser(600, 32, **SMALL),
  "DiT 128x4, batch 16": denoiser(1100, 16, **SMALL),
  "batch 8": denoiser(1900, 8, **SMALL),
  "EDM": denoiser(1100, 16, EDM, **SMALL),
  "8 channels": denoiser(1100, 16, of="f4 w32 c8", **SMALL),
  "rate 4e-3": denoiser(1100, 16, peak=4e-3, **SMALL),
  "rate 8e-3": denoiser(1100, 16, peak=8e-3, **SMALL),
  "v on cosine, rate 4e-3": denoiser(1100, 16, COSINE, peak=4e-3, **SMALL),
  "U-Net 32-64, rate 4e-3": denoiser(550, 16, {"objective.network": CONVOLUTIONS}, peak=4e-3),
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
  """CPU-seconds of `train.py` on one pinned thread with an empty compilation cache, now or when it was run before."""
  path = workdir / "cpu_seconds.json"
  if path.is_file():
    return json.loads(path.read_text())
  command = [sys.executable, str(ROOT / "train.py"), "--config", str(CONFIG), "--workdir", str(workdir), "--devices", "1"]
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
    self.features = fashion.features(self.images)
    self.moments: Moments = statistics(self.features)

  def score(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    found, logits = fashion.run(images)
    agreement = float(np.mean(logits.argmax(-1) == labels))
    neighbours = manifold(self.features[:NEIGHBOURHOOD], found)
    return {"frechet": frechet(statistics(found), self.moments)} | neighbours | {"agreement": agreement}


def drawn(workdir: Path, **choices) -> np.ndarray:
  model, params = pipeline.load(workdir)
  return pipeline.generate(model, params, LABELS, seed=0, devices=1, **choices)


def quick(stage: Stage, source: Source, frozen: Any, seed: int = 0) -> tuple[Any, float]:
  """Averaged parameters of a stage trained on `source` in this process, and the CPU-seconds of compiling and training."""
  start = time.process_time()
  tx, (key_init, key_steps) = stage.optimizer.build(stage.steps), jax.random.split(jax.random.key(seed))
  rows = batches(source, seed, stage.batch_size, 0, stage.steps)
  first = next(iter(batches(source, seed, stage.batch_size, 0, 1)))
  init = lambda key, batch: init_state(*stage.objective.init(key, batch), tx, stage.ema)
  state = jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})(key_init, first)
  state = fit(make_step(stage.objective.loss, tx, stage.ema), state, rows, key_steps, frozen, stage.steps, ())
  return jax.block_until_ready(state.ema[0]), time.process_time() - start


class Codec(NamedTuple):
  """A trained autoencoder, the training set's latents, and what it costs and is worth."""

  network: Any
  params: dict
  latents: Arrays
  told: dict


def codec(found: Experiment, source: Arrays, reference: "Reference") -> Codec:
  """Stage 1: trains, encodes the training set and measures the latents."""
  stage, network = found.autoencoder, found.autoencoder.objective.network
  params, used = quick(stage, source, ())
  start = time.process_time()
  encode = jax.jit(lambda images: codecs.encode(network, {"params": params}, images))
  parts = [[np.asarray(x)[:n] for x in encode(batch["image"])] for batch, n in in_order(source, 500)]
  mean, log_variance = (np.concatenate(each) for each in zip(*parts))
  whole = {"params": params} | codecs.measure([Gaussian(mean, log_variance)])._asdict()
  used += time.process_time() - start
  told = {"autoencoder_steps": stage.steps, "seconds": used} | reconstruction(network, whole, reference)
  return Codec(network, whole, Arrays({"mean": mean, "log_variance": log_variance, "label": source.arrays["label"]}), told)


def reconstruction(network: Any, codec: dict, reference: "Reference") -> dict:
  """PSNR on 1,000 pictures of the reference, and the Fréchet distance of what comes back of latents drawn for them."""

  @jax.jit
  def both(codec, images, keys):
    posterior, statistics = codecs.encode(network, codec, images), codecs.Statistics(codec["mean"], codec["std"])
    standard = (posterior.mean - statistics.mean) / statistics.std
    return codecs.decode(network, codec, standard), codecs.decode(network, codec, codecs.draw(statistics, posterior, keys))

  images = reference.images[:SAMPLES]
  certain, back = both(codec, images, row_keys(jax.random.key(0), np.arange(SAMPLES)))
  found = frechet(statistics(fashion.features(pictures.to_uint8(back))), reference.moments)
  return {"psnr": float(psnr(codecs.pixels(jnp.asarray(images)), certain).mean()), "reconstruction": found}


def recipe(name: str, trained: Codec, reference: "Reference") -> tuple[dict, np.ndarray]:
  """Stage 2 in the latents of a codec: a row of the table, and the samples."""
  of, settings = DENOISERS[name]
  found = experiment(SEARCH + AUTOENCODERS[of] + settings)
  standard = codecs.Statistics(trained.params["mean"], trained.params["std"])
  params, used = quick(found.denoiser, trained.latents, standard)
  images = pipeline.generate(pipeline.of(found), {"denoiser": params, "codec": trained.params}, LABELS, seed=0, devices=1)
  told = {"recipe": name, "autoencoder": of} | trained.told | {"denoiser_steps": found.denoiser.steps}
  return told | reference.score(images, LABELS) | {"seconds": trained.told["seconds"] + used}, images


def write_grid(path: Path, images: np.ndarray, labels: np.ndarray, what: str, columns: int = 10) -> None:
  shown = np.concatenate([np.flatnonzero(labels == c)[:columns] for c in np.unique(labels)])
  pictures.write_png(path, pictures.class_rows(images[shown], labels[shown], columns), {"what": what})


def row(told: dict) -> str:
  """One line of the table."""
  cells = [told["recipe"], told.get("autoencoder", "")]
  number = lambda name, digits: f"{told[name]:.{digits}f}" if name in told else ""
  cells += [number("psnr", 1), number("reconstruction", 3), number("autoencoder_steps", 0), number("denoiser_steps", 0)]
  cells += [number("frechet", 3)] + [number(name, 3) for name in ("precision", "recall", "density", "coverage", "agreement")]
  return "| " + " | ".join(cells + [number("seconds", 0)]) + " |"


HEAD = (
  "| recipe | autoencoder | PSNR, dB | its Fréchet | its steps | denoiser's steps | Fréchet | precision | recall | density "
  "| coverage | class | CPU-s |\n" + "|---" * 13 + "|"
)


def search(options: argparse.Namespace) -> None:
  """Every recipe in this process, on one thread; rows are appended to rows.jsonl."""
  options.folder.mkdir(parents=True, exist_ok=True)
  data = experiment(SEARCH).data
  reference, source = Reference(data, REFERENCE), data.open(data.train)
  names = options.only or [*AUTOENCODERS, *DENOISERS]
  print(HEAD)
  trained = {}
  for name in names:
    of = name if name in AUTOENCODERS else DENOISERS[name][0]
    if of not in trained:
      trained[of] = codec(experiment(SEARCH + AUTOENCODERS[of]), source, reference)
    told = {"recipe": "", "autoencoder": of} | trained[of].told
    if name in DENOISERS:
      told, images = recipe(name, trained[of], reference)
      write_grid(options.folder / f"{name}.png", images, LABELS, name)
      pictures.write_npz(options.folder / f"{name}.npz", images, LABELS)
    with (options.folder / "rows.jsonl").open("a") as file:
      file.write(json.dumps(told) + "\n")
    print(row(told), flush=True)


def final(options: argparse.Namespace) -> None:
  """The config as it is, trained in a process of its own and scored on the test split."""
  settings = tuple(options.set)
  found = experiment(settings)
  used = train(options.folder, settings)
  reference = Reference(found.data, "test")
  images = drawn(options.folder)
  write_grid(options.folder / "grid.png", images, LABELS, "configs/fashion_mnist.py")
  steps = {"autoencoder_steps": found.autoencoder.steps, "denoiser_steps": found.denoiser.steps}
  model, params = pipeline.load(options.folder)
  told = {"recipe": options.folder.name} | reconstruction(model.autoencoder, params["codec"], reference) | steps
  told |= reference.score(images, LABELS) | {"seconds": used}
  (options.folder / "score.json").write_text(json.dumps(told, indent=2) + "\n")
  print(f"{HEAD}\n{row(told)}")


def ways(options: argparse.Namespace) -> None:
  """The same parameters drawn with other samplers and scales."""
  split = "test" if options.test else REFERENCE
  reference = Reference(experiment(()).data, split)
  for name, steps, scale in WAYS:
    images = drawn(options.folder, sampler=named.make_sampler(name), steps=steps, guidance_scale=scale)
    told = {"recipe": f"{name}, {steps} steps", "autoencoder": f"{scale}"}
    print(row(told | reference.score(images, LABELS)), flush=True)


WAYS = (
  ("dpmpp_2m", 20, 1.0), ("dpmpp_2m", 20, 1.25), ("dpmpp_2m", 20, 1.5), ("dpmpp_2m", 20, 2.0),
  ("dpmpp_2m", 10, 1.5),
)


def noise(options: argparse.Namespace) -> None:
  """N pictures of a split against N others of the same split, drawn anew each time; and N of training against the test."""
  data = experiment(()).data
  train, test = (Reference(data, split) for split in ("train", "test"))
  rng = np.random.default_rng(options.seed)
  print("| N | N against N others, mean | std | N against the test split, mean | std |\n|---|---|---|---|---|")
  for size in SIZES:
    between, against = [], []
    for _ in range(DRAWS):
      rows = rng.permutation(len(train.features))
      one, other = (statistics(train.features[part]) for part in (rows[:size], rows[size : 2 * size]))
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
  commands.choices["search"].add_argument("--only", nargs="+", choices=[*AUTOENCODERS, *DENOISERS], metavar="NAME")
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
