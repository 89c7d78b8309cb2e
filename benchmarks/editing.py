"""Edits of Fashion-MNIST, measured on held-out pictures:

  python -m benchmarks.editing examples runs/editing            the pictures and masks of docs/editing.md
  python -m benchmarks.editing measure runs/fashion_mnist_long runs/editing [--only inpaint …]

Expects `jldm prepare idx --source /usr/share/datasets/fashion-mnist --name fashion_mnist --pad 2`.
`measure` writes a table each, as NAME.md and NAME.json, to the folder, and prints it.
"""

import argparse
from collections.abc import Callable
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from jldm.config.experiment import Sampling
from jldm.data.tfds import ImageData
from jldm.distributed import sharding
from jldm.editing.edict import EDICT
from jldm.inference import edit, latent_edit
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.media import images as pictures
from jldm.media.images import to_uint8
from jldm.metrics.extractors import fashion
from jldm.models.conditioners.degradation import Blurred, Downsampled
from jldm.samplers.ddim import DDIM
from jldm.samplers.guidance import ClassifierFree
from jldm.samplers.heun import Heun

T_SHIRT, TROUSER, DRESS, SHIRT, BAG, BOOT = 0, 1, 3, 6, 8, 9
DATA = ImageData(name="fashion_mnist", train="train[:50%]", held_out="test[:1000]", channels=1, classes=10)
HOLE = slice(12, 24), slice(8, 24)  # rows and columns that are repainted


def held_out(count: int, label: int | None = None) -> tuple[np.ndarray, np.ndarray]:
  """The first `count` test pictures, of one class or of all: uint8 [N, 32, 32, 1], labels int [N]."""
  source = DATA.open(DATA.held_out)
  examples = source[np.arange(len(source))]
  chosen = np.flatnonzero(examples["label"] == label) if label is not None else np.arange(len(source))
  return examples["image"][chosen[:count]], examples["label"][chosen[:count]]


def decibels(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
  """PSNR of uint8 [N, H, W, C], of each picture, and their mean; where [H, W] is True."""
  error = np.square(a.astype(float) - b)
  each = error.mean((1, 2, 3)) if where is None else error[:, where].mean((1, 2))
  return float(np.mean(10 * np.log10(255**2 / each)))


def seam(images: np.ndarray, hole: np.ndarray) -> tuple[float, float]:
  """Mean absolute difference of neighbours across the border of a hole [H, W], and of neighbours inside
  it.
  """
  levels, across, inside = images[..., 0].astype(float), [], []
  for axis in (0, 1):
    step = np.abs(np.diff(levels, axis=axis + 1))
    first, second = (np.take(hole, np.arange(start, hole.shape[axis] - 1 + start), axis) for start in (0, 1))
    across.append(step[:, first != second])
    inside.append(step[:, first & second])
  return tuple(float(np.concatenate(each, 1).mean()) for each in (across, inside))


def inpaint(model: Any, params: dict) -> list[dict]:
  images, labels = held_out(128)
  known = np.ones((32, 32), np.float32)
  known[HOLE] = 0
  hole, rows = known == 0, [{"method": "held-out truth", "hole, dB": "", **told_seam(images, known == 0)}]
  methods = {
    "codec alone (sees the hole)": lambda: edit.image_to_image(model, params, images, 0.0),
    "replacement, 20 steps": lambda: edit.inpaint(
      model, params, images, known, request=of(labels), sampling=ways(20)
    ),
    "replacement, 100 steps": lambda: edit.inpaint(
      model, params, images, known, request=of(labels), sampling=ways(100)
    ),
    "RePaint, 5 x 20 steps": lambda: edit.inpaint(
      model, params, images, known, repaint=(5, 5), request=of(labels), sampling=ways(20)
    ),
  }
  for name, draw in methods.items():
    drawn = np.where(known[..., None] == 1, images, draw())
    rows.append({"method": name, "hole, dB": decibels(drawn, images, hole), **told_seam(drawn, hole)})
  return rows


def told_seam(images: np.ndarray, hole: np.ndarray) -> dict[str, float]:
  across, inside = seam(images, hole)
  return {"across the seam": across, "inside": inside, "ratio": across / inside}


def ways(steps: int, scale: float = 1.5, sampler: Any = None) -> Sampling:
  return Sampling(sampler=sampler, steps=steps, guidance=ClassifierFree(scale))


def of(labels: Any) -> Request:
  return Request(given={"label": labels})


def invert(model: Any, params: dict) -> list[dict]:
  (images, labels), rows = held_out(64), []
  for name, sampler in (
    ("DDIM", DDIM()),
    ("Heun", Heun()),
    ("EDICT", EDICT()),
    ("EDICT, mix 0.93", EDICT(0.93)),
  ):
    for scale in (1.0, 3.0):
      found = latent_edit.invert(model, params, images, of(labels), ways(50, scale, sampler))
      z = np.abs(found.noise)
      rows.append(
        {
          "sampler": name,
          "guidance": scale,
          "dB": float(found.psnr.mean()),
          "worst": float(found.psnr.min()),
          "max abs z": float(z.max()),
          "rms z": float(np.sqrt(np.square(z).mean())),
        }
      )
  return rows


def silhouettes(a: np.ndarray, b: np.ndarray) -> float:
  """Intersection over union of what is brighter than a fifth."""
  a, b = a > 51, b > 51
  return float(((a & b).sum((1, 2, 3)) / np.maximum((a | b).sum((1, 2, 3)), 1)).mean())


def translate(model: Any, params: dict) -> list[dict]:
  images, _ = held_out(64, SHIRT)
  told = lambda name, drawn: {
    "bags from": name,
    "classified as a bag, %": 100 * float((fashion.classify(drawn) == BAG).mean()),
    "silhouettes, IoU": silhouettes(drawn, images),
  }
  rows = [told("the shirts themselves", images)]
  sampling = dataclasses.replace(model.sampling, steps=50, guidance=ClassifierFree(3.0))
  fresh = generate(model, params, Request(n=len(images), given={"label": BAG}), sampling)
  rows.append(told("noise of their own", fresh.data))
  for scale in (1.0, 3.0):
    for strength in (1.0, 0.8, 0.6):
      drawn = latent_edit.translate(
        model, params, images, {"label": BAG}, strength, of(SHIRT), ways(50, scale)
      )
      rows.append(told(f"the shirts' noise, strength {strength:g}, guidance {scale:g}", drawn))
  return rows


def restore(model: Any, params: dict) -> list[dict]:
  (images, _), random, rows = held_out(16), np.random.default_rng(0), []
  floats = images.astype(np.float32) / 127.5 - 1
  small = to_uint8(Downsampled(4)(jnp.asarray(floats)))[:, ::4, ::4]
  lost = (random.uniform(size=(len(images), 32, 32, 1)) < 0.5).astype(np.float32)
  resized = lambda way: np.stack(
    [np.asarray(Image.fromarray(s[..., 0]).resize((32, 32), way)) for s in small]
  )[..., None]
  coded = lambda x: edit.image_to_image(model, params, x, 0.0)
  restored = lambda measured, told: edit.restore(model, params, measured, sampling=ways(20, 1.0), **told)
  spoilt = {  # name -> what is shown, what is measured, how it was spoilt, and the plain way to undo it
    "noise, 0.5": (
      noisy := to_uint8(floats + 0.5 * random.normal(size=floats.shape)),
      noisy,
      {"noise": 0.5},
      None,
    ),
    "blur, 2 pixels": (
      blurred := to_uint8(Blurred(2.0)(jnp.asarray(floats))),
      blurred,
      {"degradation": Blurred(2.0)},
      None,
    ),
    "4x down-sampled": (
      small.repeat(4, 1).repeat(4, 2),
      small,
      {"degradation": Downsampled(4)},
      resized(Image.BICUBIC),
    ),
    "half of the pixels": (left := (images * (1 - lost)).astype(np.uint8), left, {"known": 1 - lost}, None),
  }
  for name, (shown, measured, told, plain) in spoilt.items():
    rows.append(
      {
        "spoilt by": name,
        "as it is": decibels(shown, images),
        "bicubic": "" if plain is None else decibels(plain, images),
        "through the codec": decibels(coded(shown), images),
        "restored": decibels(restored(measured, told), images),
        "codec of the truth": decibels(coded(images), images),
      }
    )
  return rows


def directions(model: Any, params: dict) -> list[dict]:
  source = DATA.open(DATA.train)
  examples = source[np.arange(2000)]
  chosen = np.isin(examples["label"], (T_SHIRT, DRESS))
  found = latent_edit.attribute(
    model, params, examples["image"][chosen], examples["label"][chosen] == DRESS, controls=4
  )
  images, _ = held_out(32, T_SHIRT)
  rows = []
  for amount in (0.0, 1.0, 1.5, 2.0):
    moved = np.stack(
      [
        latent_edit.traverse(
          model, params, image[None], found, [amount], strength=0.3, sampling=ways(20, 1.0)
        )[:, 0]
        for image in images
      ],
      1,
    )
    share = [100 * float((fashion.classify(row) == DRESS).mean()) for row in moved]
    rows.append(
      {
        "amount": amount,
        "dresses along the direction, %": share[0],
        "along controls, %": float(np.mean(share[1:])),
        "worst control, %": max(share[1:]),
      }
    )
  return rows


MEASURES: dict[str, Callable[[Any, dict], list[dict]]] = {
  "inpaint": inpaint,
  "invert": invert,
  "translate": translate,
  "restore": restore,
  "directions": directions,
}


def table(rows: list[dict]) -> str:
  shown = lambda value: (
    value if isinstance(value, str) else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
  )
  lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
  return "\n".join(lines + ["| " + " | ".join(map(shown, row.values())) + " |" for row in rows]) + "\n"


def examples(folder: Path) -> None:
  """Pictures to edit, and masks, white where they are to be repainted."""
  folder.mkdir(parents=True, exist_ok=True)
  save = lambda name, image: Image.fromarray(image).save(folder / f"{name}.png")
  various, _ = held_out(8)
  for kind, images in (("various", various), ("shirt", held_out(8, SHIRT)[0])):
    for i, image in enumerate(images[..., 0]):
      save(f"{kind}{i}", image)
  for name, label in (("tshirt", T_SHIRT), ("trouser", TROUSER)):
    save(name, held_out(3, label)[0][2, ..., 0])
  random, hole = np.random.default_rng(0), np.zeros((32, 32), np.uint8)
  hole[HOLE] = 255
  save("hole", hole)
  save("lost", 255 * (random.uniform(size=(32, 32)) < 0.5).astype(np.uint8))
  floats = various.astype(np.float32) / 127.5 - 1
  spoilt = {
    "noisy": floats + 0.5 * random.normal(size=floats.shape),
    "blurred": Blurred(2.0)(jnp.asarray(floats)),
    "small": Downsampled(4)(jnp.asarray(floats))[:, ::4, ::4],
    "upper": floats[:, :20],
  }
  for name, found in spoilt.items():
    for i, image in enumerate(to_uint8(found)[..., 0]):
      save(f"{name}{i}", image)
  source = DATA.open(DATA.train)[np.arange(2000)]
  pictures.write_npz(folder / "examples.npz", source["image"], source["label"])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("what", choices=("examples", "measure"))
  parser.add_argument("folders", type=Path, nargs="+", metavar="[WORKDIR] FOLDER")
  parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
  options = parser.parse_args()
  sharding.configure(1)
  folder = options.folders[-1]
  if options.what == "examples":
    return examples(folder)
  model, params = load(options.folders[0])
  folder.mkdir(parents=True, exist_ok=True)
  for name in options.only:
    rows = MEASURES[name](model, params)
    (folder / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
    (folder / f"{name}.md").write_text(table(rows))
    print(f"{name}\n\n{table(rows)}", flush=True)


if __name__ == "__main__":
  main()
