"""Between images and the standardised latents that a denoiser lives in.

A codec is a tree {"params", "extra", "mean" [C], "std" [C]}: the averaged parameters of a trained autoencoder, its other
collections (a codebook, or nothing), and the measured statistics of its latents over the training set,

  (1)  std^2 = Var[posterior mean] + E[posterior variance],   a channel

so that standardised latents have zero mean and unit variance, whatever the autoencoder.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.specs import Loaded
from jldm.models.autoencoders.posterior import Gaussian

Array = jax.Array


class Statistics(NamedTuple):
  """Mean and standard deviation of raw latents, a channel: [C] each."""

  mean: Array
  std: Array


def pixels(images: Array) -> Array:
  """uint8 [..., C] in 0..255 -> float32 in [-1, 1]; float images pass."""
  return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images


def variables(codec: dict) -> dict:
  """What the network is applied to; without "extra", the parameters alone, which is enough to encode."""
  return {"params": codec["params"]} | codec.get("extra", {})


def shapes(network: Any) -> dict:
  """The tree of a network's codec as shapes, nothing allocated."""
  image = jax.ShapeDtypeStruct((1, network.factor, network.factor, network.channels), jnp.float32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  vector = jax.ShapeDtypeStruct((network.latent_channels,), jnp.float32)
  extra = dict(jax.eval_shape(network.init, jax.random.key(0), image, keys))
  return {"params": extra.pop("params"), "extra": extra, "mean": vector, "std": vector}


def encode(network: Any, codec: dict, images: Array, tiles: Any = None) -> Gaussian:
  """images [B, H, W, C] -> the raw posterior over [B, h, w, c]; `tiles` is Blended(...) of `models.tiling`, or all at once."""
  if tiles is not None:
    return tiles.encode(network, variables(codec), pixels(images))
  return network.apply(variables(codec), pixels(images), method="encode")


def decode(network: Any, codec: dict, latents: Array, tiles: Any = None) -> Array:
  """Standardised latents [B, h, w, c] -> images [B, H, W, C] in [-1, 1], decoded in float32 whatever the training dtype.

  `tiles` is Exact(...) or Blended(...) of `models.tiling`, by default all at once.
  """
  raw, network = latents * codec["std"] + codec["mean"], network.clone(dtype="float32")
  if tiles is not None:
    images = tiles.decode(network, variables(codec), raw)
  else:
    images = network.apply(variables(codec), raw, method="decode")
  return jnp.clip(images, -1, 1)


def standardised(codec: dict, raw: Array) -> Array:
  """Raw latents [B, h, w, c] as a denoiser knows them, by a codec's mean and std [c]."""
  return (raw - codec["mean"]) / codec["std"]


def sample_latents(codec: Loaded, posterior: Gaussian, keys: Array) -> Array:
  """A standardised latent [B, h, w, c] from the raw posterior, exactly; keys [B]."""
  return standardised(codec.params, posterior.sample(keys))


def encode_mean(codec: Loaded, images: Array) -> Array:
  """The standardised means of the latents of images uint8, or float in [-1, 1]: [B, H, W, C] -> [B, h, w, c]."""
  return standardised(codec.params, encode(codec.model, codec.params, images).mean)


def measure(posteriors: Iterable[Gaussian]) -> Statistics:
  """Equation (1) over batches of numpy posteriors [b, h, w, c], in float64 on the host, stable by merging (Chan 1979)."""
  count, mean, square, variance = 0, 0.0, 0.0, 0.0
  for batch in posteriors:
    flat = np.asarray(batch.mean, np.float64).reshape(-1, batch.mean.shape[-1])
    new, offset = count + len(flat), flat.mean(0) - mean
    square = square + ((flat - flat.mean(0)) ** 2).sum(0) + offset**2 * count * len(flat) / new
    variance = variance + np.exp(np.asarray(batch.log_variance, np.float64)).reshape(flat.shape).sum(0)
    mean, count = mean + offset * len(flat) / new, new
  std = np.sqrt((square + variance) / count)
  return Statistics(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
