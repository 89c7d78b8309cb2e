"""Trains the classifier that Fashion-MNIST samples are compared in:  python -m
benchmarks.fashion_classifier [--out FILE]

Reads data/fashion_mnist, as `jldm prepare idx` makes it; trains on the first 55,000 training
pictures, shifted by up to one pixel and mirrored, and prints the accuracy on the others and on the
test split, and the hash that stands in jldm/metrics/extractors/fashion.py.  452 CPU-seconds of one
pinned core.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jldm.data.batches import batches
from jldm.data.source import Source
from jldm.data.tfds import ImageData
from jldm.metrics.extractors import fashion
from jldm.train.ema import Decay

SMOOTHING = 0.1  # of the labels
REACH = 1  # pixels
DECAY = 0.05  # of weights, times the rate


def varied(key: jax.Array, images: jax.Array) -> jax.Array:
  """Images [B, 28, 28, 1], each moved by up to REACH pixels along each side, black where nothing was,
  half of them mirrored.
  """
  key_places, key_mirrors = jax.random.split(key)
  padded = jnp.pad(images, ((0, 0), (REACH, REACH), (REACH, REACH), (0, 0)))
  cut = lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), (fashion.SIDE, fashion.SIDE, 1))
  moved = jax.vmap(cut)(padded, jax.random.randint(key_places, (len(images), 2), 0, 2 * REACH + 1))
  mirrored = jax.random.bernoulli(key_mirrors, shape=(len(images), 1, 1, 1))
  return jnp.where(mirrored, moved[:, :, ::-1], moved)


def optimizer(schedule: optax.Schedule) -> optax.GradientTransformation:
  """Muon for 3x3 kernels as matrices [9 in, out], AdamW for all else, both with updates of an rms of some
  0.2.
  """

  def matrices(params):
    matrix = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
    return jax.tree.map(lambda leaf: matrix if leaf.ndim == 4 and leaf.shape[2] > 1 else None, params)

  return optax.contrib.muon(
    schedule,
    weight_decay=DECAY,
    adam_weight_decay=DECAY,
    adam_b2=0.99,
    muon_weight_dimension_numbers=matrices,
    consistent_rms=0.2,
  )


def train(source: Source, steps: int, batch_size: int, peak: float, seed: int) -> Any:
  """Averaged parameters of a Classifier after that many steps on `source`."""
  network, ema = fashion.Classifier(), Decay(0.998)
  key_init, key_steps = jax.random.split(jax.random.key(seed))
  params = network.init(key_init, jnp.zeros((1, fashion.SIDE, fashion.SIDE, 1), jnp.uint8))["params"]
  tx = optimizer(optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps))

  def loss(params, images, labels):
    _, logits = network.apply({"params": params}, images)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, fashion.CLASSES), SMOOTHING)
    return optax.softmax_cross_entropy(logits, targets).mean()

  @jax.jit
  def step(n, params, average, state, images, labels):
    key = jax.random.fold_in(key_steps, n)
    value, grads = jax.value_and_grad(loss)(params, varied(key, images), labels)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    return params, ema.update(average, params, n), state, value

  state, average = tx.init(params), ema.init(params)
  for n, batch in enumerate(batches(source, seed, batch_size, 0, steps)):
    images = fashion.crop_middle(batch["image"])
    params, average, state, value = step(jnp.asarray(n), params, average, state, images, batch["label"])
    if n % 500 == 0:
      print(f"step {n}: loss {value:.3f}", flush=True)
  return average[0]


def accuracy(params, source: Source) -> float:
  whole = source[np.arange(len(source))]
  return float(np.mean(fashion.classify(whole["image"], params) == whole["label"]))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=Path, default=fashion.WEIGHTS)
  parser.add_argument("--data-dir", default="data")
  parser.add_argument("--steps", type=int, default=6000)
  parser.add_argument("--batch-size", type=int, default=64)
  parser.add_argument("--peak", type=float, default=6e-3)
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  data = ImageData(
    name="fashion_mnist",
    data_dir=options.data_dir,
    train="train[:55000]",
    held_out="train[55000:]",
    classes=10,
  )
  params = train(data.open(data.train), options.steps, options.batch_size, options.peak, options.seed)
  packed = fashion.pack(params)
  np.savez(options.out, **packed)
  params = fashion.load_classifier(
    options.out, hashed := hashlib.blake2b(options.out.read_bytes(), digest_size=16).hexdigest()
  )
  for split in (data.held_out, "test"):
    print(f"accuracy on {split}: {100 * accuracy(params, data.open(split)):.2f} %")
  print(
    f"{sum(value.size for value in packed.values())} parameters, {options.out.stat().st_size} bytes, "
    f"blake2b {hashed}"
  )


if __name__ == "__main__":
  main()
