"""An autoencoder with a discriminator, from start to end:  python -m benchmarks.adversarial
runs/adversarial [--steps 2000]

Trains a small KL autoencoder on crops of photographs (`jldm prepare photos --size 64`), its
PatchGAN from a quarter of the steps on, and one without; writes metrics.jsonl of each and
adversarial.png: logits of real and of reconstructed crops, the adaptive weight, and PSNR of
held-out crops.  Runs on one device; what is finished is not trained again.
"""

import argparse
import json
from pathlib import Path
import time
from typing import Any

import jax
import numpy as np

from jldm.core.keys import stage_keys
from jldm.data.batches import batches, in_order
from jldm.data.tfds import ImageData
from jldm.distributed import sharding
from jldm.media import images as pictures, sheets
from jldm.metrics.image import psnr
from jldm.models.autoencoders.discriminator import PatchDiscriminator
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.codecs.codec import pixels
from jldm.models.codecs.images import ImageCodec
from jldm.objectives.adversarial import Adversarial
from jldm.objectives.autoencoder import Reconstruction
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW, WarmupCosine
from jldm.train.parts import PerPart
from jldm.train.state import init_state
from jldm.train.step import make_step

CHOSEN = "with PatchGAN"
BATCH, EVERY = 8, 10  # EVERY: steps between two points of a curve
NETWORK = KLAutoencoder(latent_channels=4, widths=(16, 32), resnets=0, groups=8, patch=2)
RATE = AdamW(schedule=WarmupCosine(peak=3e-3, warmup_steps=50), b2=0.99)
SLOWER = AdamW(schedule=WarmupCosine(peak=5e-4, end=5e-4, warmup_steps=0), b1=0.5, b2=0.9)


def objective(start_step: int) -> Adversarial:
  """With a discriminator of 34x34 pixels a logit."""
  return Adversarial(
    inner=Reconstruction(network=NETWORK, l1_weight=1.0, l2_weight=2.0, kl_weight=1e-5),
    discriminator=PatchDiscriminator(widths=(16, 32, 64), groups=8),
    start_step=start_step,
  )


def train(path: Path, data: ImageData, found: Any, optimizer: Any, steps: int) -> None:
  """Writes the metrics of every EVERY steps as JSON lines, whole runs only."""
  train_set, held_out = data.open(data.train), data.open(data.held_out)
  key_init, key_steps, _ = stage_keys(0, "autoencoder")
  tx, ema = optimizer.build(steps), Decay(0.99)
  example = next(batches(train_set, 0, BATCH, 0, 1))
  state = jax.jit(lambda key, batch: init_state(*found.init(key, batch), tx, ema))(key_init, example)
  step = make_step(found.loss, tx, ema)

  @jax.jit
  def measured(params, images):
    variables = {"params": params.get("autoencoder", params)}
    z = ImageCodec(NETWORK).encode(variables, {"image": images}).mean
    return psnr(pixels(images), NETWORK.apply(variables, z, method="decode"))

  lines, began = [], time.process_time()
  for n, batch in enumerate(batches(train_set, 0, BATCH, 0, steps), 1):
    state, metrics = step(state, batch, key_steps, ())
    if n % EVERY == 0:
      lines.append({"step": n} | {name: float(value) for name, value in metrics.items()})
    if n % (10 * EVERY) == 0:
      values = [np.asarray(measured(state.ema[0], b["image"]))[:count] for b, count in in_order(held_out, 70)]
      lines[-1]["held_out_psnr"] = float(np.concatenate(values).mean())
      lines[-1]["cpu_seconds"] = round(time.process_time() - began, 1)
      print(json.dumps(lines[-1]), flush=True)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def plot(runs: dict[str, list[dict]], start_step: int) -> np.ndarray:
  """Three plots, one below the other -> uint8 [H, W, 3]."""

  def line(run: str, name: str, first: int = 0):
    points = [(row["step"], row[name]) for row in runs[run] if name in row and row["step"] > first]
    return tuple(zip(*points))

  logits = {"real": line(CHOSEN, "d_real", start_step), "reconstructed": line(CHOSEN, "d_fake", start_step)}
  held_out = {run: line(run, "held_out_psnr") for run in runs}
  return np.concatenate(
    [
      sheets.curves(logits, "step", "logits of the discriminator, mean of a batch", height=260),
      sheets.curves(
        {"w": line(CHOSEN, "adversarial_weight", start_step)}, "step", "adaptive weight", height=260
      ),
      sheets.curves(held_out, "step", "PSNR of held-out crops, dB", height=260),
    ]
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=Path)
  parser.add_argument("--steps", type=int, default=2000)
  parser.add_argument("--data-dir", default="data")
  options = parser.parse_args()
  sharding.configure(1)
  data = ImageData(name="photos", data_dir=options.data_dir, height=64, width=64, channels=3)
  start_step, runs = options.steps // 4, {}
  found = objective(start_step)
  for name, trained in ((CHOSEN, (found, PerPart(part=SLOWER, rest=RATE))), ("without", (found.inner, RATE))):
    path = options.folder / name.split()[0] / "metrics.jsonl"
    if not path.is_file():
      train(path, data, *trained, options.steps)
    runs[name] = [json.loads(line) for line in path.read_text().splitlines()]
  what = {"what": "adversarial training", "steps": options.steps, "start_step": start_step}
  pictures.write_png(options.folder / "adversarial.png", plot(runs, start_step), what)


if __name__ == "__main__":
  main()
