"""Codecs map data to the standardised latents of a denoiser, and back.

A codec is static and hashable; its parameters are a tree

  {"params", "extra", "mean", "std"}: what its networks are applied to, and the statistics of raw latents

  (1)  std^2 = Var[posterior mean] + E[posterior variance]    per channel, measured over the training set

  (2)  signal = Var[posterior mean] / std^2

so that standardised latents, (raw - mean) / std, have zero mean and unit variance, whatever the
codec.  Latents are one array [B, ...] or a dict of them by part; "mean" and "std" are trees of the
same structure, [C] each.
"""

from collections.abc import Iterable
import functools
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.specs import Loaded, Spec
from jldm.models.autoencoders.posterior import Gaussian, is_posterior, sample_posterior

Array = jax.Array
Tree = Any  # an array, or a dict of arrays by part
Batch = dict[str, Array]  # of data, by field


@runtime_checkable
class Codec(Protocol):
  """Maps a batch of data to raw latents and back; a frozen dataclass.

  trained: whether its parameters are learned or imported; if not, `init` returns them as they are used.
  fields: the arrays of a batch that it reads.
  """

  trained: ClassVar[bool]

  @property
  def fields(self) -> tuple[str, ...]: ...

  def init(self, key: Array) -> dict:
    """New parameters, with mean 0 and std 1 if those are to be measured."""
    ...

  def latent_spec(self, data: Spec) -> Tree:
    """The latents of one example as shapes; UserError for data that the codec cannot encode."""
    ...

  def latent_mask(self, known: Array) -> Tree:
    """A mask of the data's places, 1 where known, as one of the latents' places."""
    ...

  def encode(self, params: dict, batch: Batch) -> Tree:
    """The posteriors of raw latents: a Gaussian or a Point, or a dict of them by part."""
    ...

  def decode(self, params: dict, z: Tree) -> Tree:
    """Raw latents -> data in float32, differentiable: images in [-1, 1]."""
    ...

  def finish(self, decoded: Tree) -> Tree:
    """What `decode` returns in the dtype of the data: uint8 images."""
    ...


class Statistics(NamedTuple):
  """Of raw latents, per channel: [C] each.

  signal: (2), the share of the variance that tells examples apart; the rest is the encoder's noise.
  """

  mean: Array
  std: Array
  signal: Array


def pixels(images: Array) -> Array:
  """uint8 [..., C] in 0..255 -> float32 in [-1, 1]; float images pass."""
  return images.astype(jnp.float32) / 127.5 - 1 if images.dtype == jnp.uint8 else images


def to_bytes(images: Array) -> Array:
  """Images [..., C] in [-1, 1] -> uint8, rounded to nearest; the inverse of `pixels`, within jit."""
  return jnp.clip(jnp.rint(127.5 * (images + 1)), 0, 255).astype(jnp.uint8)


@functools.lru_cache(maxsize=16)
def init_shapes(codec: Codec) -> dict:
  """The parameters of a codec as shapes, nothing allocated; traced once per codec."""
  return jax.eval_shape(codec.init, jax.random.key(0))


def standardised(params: dict, raw: Tree) -> Tree:
  """Raw latents as a denoiser knows them, by a codec's mean and std."""
  return jax.tree.map(lambda x, mean, std: (x - mean) / std, raw, *latent_statistics(params, raw))


def destandardised(params: dict, z: Tree) -> Tree:
  """The inverse of `standardised`."""
  return jax.tree.map(lambda x, mean, std: x * std + mean, z, *latent_statistics(params, z))


def latent_statistics(params: dict, like: Tree) -> tuple[Tree, Tree]:
  """The mean and the std of latents, of those parts that `like` has."""
  mean, std = params["mean"], params["std"]
  return (
    tuple({name: each[name] for name in like} for each in (mean, std))
    if isinstance(like, dict)
    else (mean, std)
  )


def sample_latents(codec: Loaded, posterior: Tree, keys: Array) -> Tree:
  """Standardised latents from raw posteriors, exactly; keys [B]."""
  return standardised(codec.params, sample_posterior(posterior, keys))


def encode_mean(codec: Loaded, batch: Batch) -> Tree:
  """The standardised means of the latents of a batch: {"image": uint8 or float in [-1, 1], [B, H, W,
  C]} -> [B, h, w, c].
  """
  means = jax.tree.map(lambda each: each.mean, codec.model.encode(codec.params, batch), is_leaf=is_posterior)
  return standardised(codec.params, means)


def decode_latents(codec: Loaded, z: Tree) -> Tree:
  """Standardised latents -> data in float32."""
  return codec.model.decode(codec.params, destandardised(codec.params, z))


def measure_statistics(posteriors: Iterable[Gaussian]) -> Statistics:
  """Equations (1) and (2) over batches of numpy posteriors [b, ..., c], in float64 on the host, stable by
  merging (Chan 1979).
  """
  count, mean, square, variance = 0, 0.0, 0.0, 0.0
  for batch in posteriors:
    flat = np.asarray(batch.mean, np.float64).reshape(-1, batch.mean.shape[-1])
    new, offset = count + len(flat), flat.mean(0) - mean
    square = square + ((flat - flat.mean(0)) ** 2).sum(0) + offset**2 * count * len(flat) / new
    variance = variance + np.exp(np.asarray(batch.log_variance, np.float64)).reshape(flat.shape).sum(0)
    mean, count = mean + offset * len(flat) / new, new
  std = np.sqrt((square + variance) / count)
  signal = square / np.maximum(square + variance, np.finfo(np.float64).tiny)
  return Statistics(*(jnp.asarray(each, jnp.float32) for each in (mean, std, signal)))
