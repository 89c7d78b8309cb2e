"""Denoisers that are told of a picture, measured on held-out ones.

  taskset -c 0 python -m benchmarks.conditioned train runs/conditioned
  python -m benchmarks.conditioned measure runs/conditioned

Expects `jldm prepare idx --source /usr/share/datasets/fashion-mnist --name fashion_mnist --pad 2`
and `jldm prepare photos --size 64`.  `train` trains what is not finished, on one CPU device; runs
that have the same autoencoder take it from the first of them.  `measure` writes tables, NAME.md,
beside the runs and sheets to --docs.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
import shutil
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.editing import silhouettes
from jldm.cli.train import load_config
from jldm.config.experiment import Experiment
from jldm.config.override import override
from jldm.core.keys import row_keys
from jldm.core.specs import Loaded
from jldm.core.trees import traced
from jldm.distributed import sharding
from jldm.editing import inpaint as blended
from jldm.inference import edit
from jldm.inference.conditions import embed_branches, make_branches
from jldm.inference.generate import Request, sampling_pairs
from jldm.inference.load import load
from jldm.inference.model import Model
from jldm.media import images as pictures, sheets
from jldm.metrics.extractors import fashion
from jldm.metrics.image import psnr, ssim
from jldm.models.codecs import codec as codecs
from jldm.models.conditioners import masks
from jldm.models.conditioners.degradation import Blurred, Downsampled, Edges, Grey, Missing, Noisy, luminance
from jldm.objectives.denoiser import bind
from jldm.runs import train as training
from jldm.samplers.resample import Resample
from jldm.samplers.sample import draw_samples
from jldm.storage import workdir as workdirs

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = 4  # of each held-out picture
MANY = Request(n=SAMPLES)
RESTORE = {"denoiser.objective.conditioners": "(ClassLabel(classes=10), Paired(degradation=Mixture()))"}
SKETCH = {"denoiser.objective.conditioners": "(ClassLabel(classes=10), Paired(degradation=Edges()))"}
RUNS = {  # name -> config, what is changed of it, and whose autoencoder it has
  "inpaint": ("fashion_inpaint", {}, None),
  "colour": ("photos_colour", {}, None),
  "plain": ("fashion_inpaint", {"denoiser.objective.conditioners": "(ClassLabel(classes=10),)"}, "inpaint"),
  "restore": ("fashion_inpaint", RESTORE, "inpaint"),
  "sketch": ("fashion_inpaint", SKETCH, "inpaint"),
}


def experiment(name: str, data_dir: str) -> Experiment:
  config, changes, _ = RUNS[name]
  found = load_config(str(ROOT / "configs" / f"{config}.py"))
  for path, text in (changes | {"data.data_dir": data_dir}).items():
    found = override(found, path, text)
  return found


def train(folder: Path, name: str, data_dir: str) -> None:
  """Trains one of RUNS, and writes the CPU-seconds of its stages, compilation and encoding included,
  to NAME.json.
  """
  found, workdir, lender, cost = (
    experiment(name, data_dir),
    folder / name,
    RUNS[name][2],
    folder / f"{name}.json",
  )
  costs = json.loads(cost.read_text()) if cost.exists() else {}
  if lender and not workdir.exists():
    workdirs.claim_workdir(workdir, found)
    shutil.copytree(folder / lender / "autoencoder", workdir / "autoencoder")
  for stage in found.names:
    if stage not in costs:
      start = time.process_time()
      training.train(found, workdir, (stage,), devices=1)
      cost.write_text(json.dumps(costs := costs | {stage: time.process_time() - start}))


def held_out(found: Experiment, count: int, labelled: bool = False) -> Any:
  """`count` held-out pictures, evenly spread: uint8 [N, H, W, C], or with their labels."""
  source = found.data.open(found.data.held_out)
  rows = source[np.arange(count) * len(source) // count]
  return (rows["image"], rows["label"]) if labelled else rows["image"]


def keys(count: int) -> jax.Array:
  return row_keys(jax.random.key(7), jnp.arange(count))


def coded(model: Model, params: dict, images: np.ndarray) -> np.ndarray:
  """What the autoencoder makes of pictures uint8, without a denoiser."""
  decode = jax.jit(lambda codec, z: codecs.decode_latents(Loaded(model.codec, codec), z))
  return pictures.to_uint8(decode(params["codec"], edit.encode_images(model, params["codec"], images)))


def samples(images: np.ndarray, count: int) -> np.ndarray:
  """[N count, H, W, C] uint8 -> [N, count, H, W, C] in [-1, 1]."""
  return np.asarray(codecs.pixels(images)).reshape(-1, count, *images.shape[1:])


def decibels(square: Any) -> float:
  """Of mean squared errors of single pictures, where pictures span 2, a mean over pictures."""
  return float(np.mean(10 * np.log10(4 / np.asarray(square))))


def quality(drawn: np.ndarray, truth: np.ndarray) -> dict[str, float]:
  """PSNR and SSIM of single samples [N, S, H, W, C] against truth [N, H, W, C], and PSNR of the mean of the
  S.
  """
  flat, repeated = drawn.reshape(-1, *truth.shape[1:]), truth.repeat(drawn.shape[1], 0)
  return {
    "psnr": float(psnr(flat, repeated).mean()),
    "ssim": float(ssim(flat, repeated).mean()),
    "mean_psnr": float(psnr(drawn.mean(1), truth).mean()),
  }


# name -> whose denoiser, known latents put back after every step, steps, how often every 5 are gone over
METHODS = {
  "RePaint": ("plain", True, 20, 5),
  "replacement": ("plain", True, 20, 1),
  "trained": ("inpaint", False, 20, 1),
  "trained, replacement": ("inpaint", True, 20, 1),
  "trained, RePaint": ("inpaint", True, 20, 5),
}
HIDDEN = {  # name -> shape of masks, and of how many pixels its steps are
  "box": ("box", 1),
  "half_plane": ("half_plane", 1),
  "frame": ("frame", 1),
  "strokes": ("strokes", 1),
  "box of whole latents": ("box", 4),
}
AT_ONCE = 64  # samples


@functools.partial(jax.jit, static_argnums=(0, 1))
def drawn_in(
  model: Model,
  put_back: bool,
  params: dict,
  sampler: Any,
  pairs: jax.Array,
  images: jax.Array,
  known: jax.Array,
  keys: jax.Array,
  given: tuple,
) -> jax.Array:
  """Pictures [B, H, W, C] in [-1, 1], drawn anew where known [B, H, W, 1] is 0, which nothing sees;
  labels unknown.
  """
  x0 = edit.encode_images(model, params["codec"], masks.fill_hidden(images, known))
  denoise = bind(model.objective, params, embed_branches(model, params, given))
  if put_back:
    z = blended.inpaint_latents(
      model.process, denoise, sampler, x0, model.codec.latent_mask(known), pairs, keys
    )
  else:
    z = draw_samples(model.process, denoise, sampler, x0, pairs, keys)
  return codecs.decode_latents(Loaded(model.codec, params["codec"]), z)


def fillings(
  model: Model, params: dict, images: np.ndarray, known: jax.Array, put_back: bool, steps: int, repeats: int
) -> tuple[np.ndarray, int]:
  """Each picture with what is hidden drawn anew [N, H, W, C] in [-1, 1], and evaluations of the network in
  each.
  """
  pairs, sampler = (
    sampling_pairs(model, dataclasses.replace(model.sampling, steps=steps)),
    model.sampling.sampler,
  )
  if repeats > 1:
    pairs, sampler = blended.repaint_pairs(pairs, 5, repeats), Resample(sampler)
  masked = {"masked": (images, known)} if "masked" in model.conditioners else {}
  given = make_branches(model, masked, (), len(images))
  rows = codecs.pixels(images), known, keys(len(images))
  some = [slice(start, start + AT_ONCE) for start in range(0, len(images), AT_ONCE)]
  told = params, traced(sampler), pairs
  drawn = [
    drawn_in(model, put_back, *told, *jax.tree.map(lambda x, part=part: x[part], (*rows, given)))
    for part in some
  ]
  return np.concatenate(drawn), int((pairs[:, 0] > pairs[:, 1]).sum())


def inpainting(folder: Path, docs: Path) -> str:
  """A table of hidden pixels, method by method and shape by shape, and a sheet."""
  images = held_out(workdirs.read_experiment(folder / "inpaint"), 256)
  models = {name: load(folder / name) for name in ("plain", "inpaint")}
  truth, lines, shown = samples(images, 1)[:, 0], [], {}
  for shape, (kind, step) in HIDDEN.items():
    size = images.shape[1] // step, images.shape[2] // step
    known = np.asarray(masks.refine(masks.draw_masks((kind,), keys(len(images)), size), step))
    kept, error = lambda drawn, known=known: known * truth + (1 - known) * drawn, {}
    inside = lambda drawn, known=known: (
      ((drawn - truth) ** 2 * (1 - known)).sum((1, 2, 3)) / (1 - known).sum((1, 2, 3))
    )
    told, alone = (
      f"| {shape}, {100 * (1 - known).mean():.0f} %",
      samples(coded(*models["plain"], images), 1)[:, 0],
    )
    lines.append(f"{told} | the autoencoder, which sees it |  | {np.sqrt(inside(alone).mean()):.3f} |  |")
    for name, (whose, *method) in METHODS.items():
      drawn, evaluations = fillings(*models[whose], images, known, *method)
      error[name], shown[shape, name] = inside(drawn), pictures.to_uint8(kept(drawn))
      root, less = np.sqrt(error[name].mean()), against(error[name], error["RePaint"])
      lines.append(f"{told} | {name} | {evaluations} | {root:.3f} | {less} |")
      print(lines[-1], flush=True)
    shown[shape, "shown"] = pictures.to_uint8(known * truth)
  picked = {shape: slice(3 * i, 3 * i + 3) for i, shape in enumerate(list(HIDDEN)[:4])}
  pick = lambda name: np.concatenate([shown[shape, name][some] for shape, some in picked.items()])
  rows = [images[:12], *(pick(name) for name in ("shown", "replacement", "RePaint", "trained, replacement"))]
  pictures.write_png(docs / "conditioned_inpaint.png", sheets.tile_rows(rows, 2), {"what": "inpainting"})
  head = "| hidden | method | evaluations | RMSE | squared error less RePaint's |"
  return "\n".join([head, "|---|---|---|---|---|", *lines])


def against(error: np.ndarray, other: np.ndarray) -> str:
  """The mean of error - other [N] and its standard error, by pictures."""
  less = error - other
  return f"{less.mean():+.3f} ± {less.std(ddof=1) / np.sqrt(len(less)):.3f}" if less.any() else ""


def bicubic(images: np.ndarray, factor: int) -> np.ndarray:
  """Pictures uint8 [N, H, W, C] of blocks of one colour, enlarged from a pixel a block."""
  large = lambda image: image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
  small = [Image.fromarray(image[::factor, ::factor].squeeze()) for image in images]
  return np.stack([np.asarray(large(image)) for image in small]).reshape(images.shape)


def restoration(folder: Path, docs: Path) -> str:
  """A table of restorations of Fashion-MNIST, and a sheet."""
  images = held_out(workdirs.read_experiment(folder / "restore"), 32)
  plain, trained = (load(folder / name) for name in ("plain", "restore"))
  truth, lines, rows = samples(images, 1)[:, 0], [], [images[:6]]
  for degrade in (Noisy(), Blurred(), Downsampled(), Missing()):
    spoilt = pictures.to_uint8(degrade(codecs.pixels(images), keys(len(images))))
    prior, options = spoilt, {"degradation": degrade}
    if isinstance(degrade, Noisy):
      options = {"noise": degrade.std}
    elif isinstance(degrade, Missing):
      options = {"known": np.asarray(degrade.known(jnp.zeros(images.shape), keys(len(images))))}
    elif isinstance(degrade, Downsampled):
      prior = spoilt[:, :: degrade.factor, :: degrade.factor]
    free, paired = edit.restore(*plain, prior, request=MANY, **options), edit.paired(*trained, spoilt, MANY)
    results = {"the picture as it comes": (spoilt, 1), "its reconstruction": (coded(*plain, spoilt), 1)}
    if isinstance(degrade, Downsampled):
      results["bicubic"] = bicubic(spoilt, degrade.factor), 1
    results |= {"without training": (free, SAMPLES), "trained": (paired, SAMPLES)}
    lines += [
      f"| {degrade} | {name} | {figures(samples(some, n), truth)} |" for name, (some, n) in results.items()
    ]
    rows += [spoilt[:6], free[: 6 * SAMPLES : SAMPLES], paired[: 6 * SAMPLES : SAMPLES]]
    print(*lines[-len(results) :], sep="\n", flush=True)
  whole = f"| none | the autoencoder alone | {figures(samples(coded(*plain, images), 1), truth)} |"
  pictures.write_png(
    docs / "conditioned_restore.png", sheets.tile_rows(side_by_side(rows), 2), {"what": "restoration"}
  )
  head = "| spoilt by | what | PSNR of a sample | SSIM | PSNR of the mean of 4 |"
  return "\n".join([head, "|---|---|---|---|---|", whole, *lines])


def side_by_side(rows: list[np.ndarray]) -> list[np.ndarray]:
  """The first row, and the others three by three below it, two threes in a row of the sheet."""
  first, *others = rows
  pairs = [np.concatenate([a, b]) for k in (0, 6) for a, b in zip(others[k : k + 3], others[k + 3 : k + 6])]
  return [np.concatenate([first, first]), *pairs]


def figures(drawn: np.ndarray, truth: np.ndarray) -> str:
  found = quality(drawn, truth)
  mean = f"{found['mean_psnr']:.2f}" if drawn.shape[1] > 1 else ""
  return f"{found['psnr']:.2f} | {found['ssim']:.3f} | {mean}"


def tinted(grey: jax.Array, colours: Any) -> jax.Array:
  """Grey pictures with the colours of others, [..., C] each: the luminance of the one, the differences
  from it of the other.
  """
  return jnp.clip(grey + colours - luminance(jnp.asarray(colours)), -1, 1)


def photographs(folder: Path, docs: Path) -> str:
  """A table of grey -> colour on held-out crops, and a sheet."""
  found = workdirs.read_experiment(folder / "colour")
  images, model, lines = held_out(found, 24), load(folder / "colour"), []
  truth, told = samples(images, 1)[:, 0], Grey()(codecs.pixels(images))
  source = pictures.to_uint8(told)
  made = edit.paired(*model, source, MANY)
  drawn, mean_colour = samples(made, SAMPLES), mean_picture(found).mean((0, 1))
  results = {
    "the source itself": np.asarray(told)[:, None],
    "the mean colour everywhere": np.broadcast_to(mean_colour, truth.shape)[:, None],
    "made of another source": np.roll(drawn, 1, 0),
    "made of its source": drawn,
    "the grey picture in the mean colour": np.asarray(tinted(told, mean_colour))[:, None],
    "the grey picture in the colours made": np.asarray(tinted(told[:, None], drawn)),
    "the autoencoder alone": samples(coded(*model, images), 1),
  }
  for what, some in results.items():
    own = own_source(Grey(), some, told)
    lines.append(f"| {what} | {figures(some, truth)} | {f'{own:.2f}' if own < 80 else 'exact'} |")
    print(lines[-1], flush=True)
  some = np.arange(1, len(images), 3)[:7]
  shown = pictures.to_uint8(results["the grey picture in the colours made"].reshape(made.shape))
  rows = [images[some], source[some], made[some * SAMPLES], shown[some * SAMPLES]]
  pictures.write_png(docs / "conditioned_colour.png", sheets.tile_rows(rows), {"what": "colour"})
  head = "| what | PSNR of a sample | SSIM | PSNR of the mean of 4 | PSNR of its own source |"
  return "\n".join([head, "|---|---|---|---|---|", *lines])


def mean_picture(found: Experiment) -> np.ndarray:
  """Of the training set: [H, W, C] in [-1, 1]."""
  training = found.data.open(found.data.train)
  return np.float32(training[np.arange(len(training))]["image"].mean(0) / 127.5 - 1)


def own_source(degrade: Any, drawn: np.ndarray, told: jax.Array) -> float:
  """PSNR of what `degrade` makes of samples [N, S, H, W, C] against what they were made of [N, H, W, C]."""
  return float(
    psnr(degrade(drawn.reshape(-1, *drawn.shape[2:])), np.asarray(told).repeat(drawn.shape[1], 0)).mean()
  )


def sketches(folder: Path, docs: Path) -> str:
  """A table of edges -> picture of Fashion-MNIST, and a sheet."""
  found = workdirs.read_experiment(folder / "sketch")
  model, (images, labels) = load(folder / "sketch"), held_out(found, 128, labelled=True)
  truth, told, lines = samples(images, 1)[:, 0], Edges()(codecs.pixels(images)), []
  source = pictures.to_uint8(told)
  made = edit.paired(*model, source, MANY)
  drawn = samples(made, SAMPLES)
  results = {
    "the sketch itself": np.asarray(told)[:, None],
    "the mean picture of the training set": np.broadcast_to(mean_picture(found), truth.shape)[:, None],
    "made of another sketch": np.roll(drawn, 1, 0),
    "made of its sketch": drawn,
    "the autoencoder alone": samples(coded(*model, images), 1),
    "the picture itself": truth[:, None],
  }
  for what, some in results.items():
    flat = pictures.to_uint8(some.reshape(-1, *truth.shape[1:]))
    right = 100 * (fashion.classify(flat) == labels.repeat(some.shape[1])).mean()
    overlap = silhouettes(flat, images.repeat(some.shape[1], 0))
    quality = "exact |  |  |" if what == "the picture itself" else f"{figures(some, truth)} |"
    lines.append(f"| {what} | {quality} {overlap:.2f} | {right:.0f} |")
    print(lines[-1], flush=True)
  rows = [images[:12], source[:12], *(made[i : 12 * SAMPLES : SAMPLES] for i in range(2))]
  pictures.write_png(docs / "conditioned_sketch.png", sheets.tile_rows(rows), {"what": "sketch"})
  head = "| what | PSNR of a sample | SSIM | PSNR of the mean of 4 | silhouettes, IoU | classified as the truth is, % |"
  return "\n".join([head, "|---|---|---|---|---|---|", *lines])


def costs(folder: Path) -> str:
  """CPU-seconds of each run."""
  found = {name: json.loads((folder / f"{name}.json").read_text()) for name in RUNS}
  lines = [f"| {name} | {cost['autoencoder']:.0f} | {cost['denoiser']:.0f} |" for name, cost in found.items()]
  return "\n".join(["| run | autoencoder | denoiser |", "|---|---|---|", *lines])


TABLES = {
  "inpainting": inpainting,
  "restoration": restoration,
  "photographs": photographs,
  "sketches": sketches,
  "costs": lambda folder, docs: costs(folder),
}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("what", choices=("train", "measure"))
  parser.add_argument("folder", type=Path)
  parser.add_argument("--data-dir", default="data")
  parser.add_argument("--docs", type=Path, default=ROOT / "docs")
  parser.add_argument(
    "--only", nargs="+", choices=[*RUNS, *TABLES], metavar="NAME", help=" / ".join([*RUNS, *TABLES])
  )
  options = parser.parse_args()
  sharding.configure(1)
  names = RUNS if options.what == "train" else TABLES
  for name in [name for name in names if name in (options.only or names)]:
    if options.what == "train":
      train(options.folder, name, options.data_dir)
    else:
      (options.folder / f"{name}.md").write_text(TABLES[name](options.folder, options.docs) + "\n")


if __name__ == "__main__":
  main()
