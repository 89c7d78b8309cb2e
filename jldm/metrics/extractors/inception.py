"""The Inception network of the Fréchet Inception Distance: Szegedy et al. 2015 (1512.00567) as
TensorFlow shipped it in 2015.

Heusel et al. 2017 (1706.08500) took its last pooled features, and every FID since is of them.  It
is not the published architecture in three places, which figures depend on: average pools leave out
the padding, the last block takes a max pool where the one before takes an average, and there are
1,008 logits.  A picture is resized to 299x299 by TensorFlow 1's bilinear interpolation, corners
aligned at the top left, without a filter: `resize_bilinear`.

jldm ships no weights: `jldm convert --kind inception` makes them from published ones.  Logits are
without the bias of the last layer, as the Inception Score takes them.
"""

from collections.abc import Mapping
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jldm.metrics.extractors import weights
from jldm.metrics.extractors.extractor import Extracted, Extractor, register_extractor
from jldm.nn.dense import Dense

Array = jax.Array

SIDE, FEATURES, CLASSES = 299, 2048, 1008


class Conv(NamedTuple):
  """A convolution, its batch norm and ReLU; kernel is height and width."""

  name: str
  features: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "SAME"


class Pool(NamedTuple):
  """Over 3x3 places: their maximum or their average, padding left out."""

  maximum: bool = True
  stride: int = 1
  padding: str = "SAME"


def square(name: str, features: int, side: int) -> Conv:
  return Conv(name, features, (side, side))


def halving(name: str, features: int) -> Conv:
  return Conv(name, features, (3, 3), 2, "VALID")


DOWN = Pool(stride=2, padding="VALID")
Step = Conv | Pool | tuple[Conv, ...]  # a tuple of convolutions: of the same input, side by side
Branches = tuple[tuple[Step, ...], ...]


def double_branch(last: Conv) -> tuple[Conv, ...]:
  """The branch of a block at 35x35 that has two convolutions of 3x3."""
  return square("branch3x3dbl_1", 64, 1), square("branch3x3dbl_2", 96, 3), last


def at35(pooled: int) -> Branches:
  return (
    (square("branch1x1", 64, 1),),
    (square("branch5x5_1", 48, 1), square("branch5x5_2", 64, 5)),
    double_branch(square("branch3x3dbl_3", 96, 3)),
    (Pool(maximum=False), square("branch_pool", pooled, 1)),
  )


def at17(width: int) -> Branches:
  across, down = (1, 7), (7, 1)
  return (
    (square("branch1x1", 192, 1),),
    (square("branch7x7_1", width, 1), Conv("branch7x7_2", width, across), Conv("branch7x7_3", 192, down)),
    (
      square("branch7x7dbl_1", width, 1),
      Conv("branch7x7dbl_2", width, down),
      Conv("branch7x7dbl_3", width, across),
      Conv("branch7x7dbl_4", width, down),
      Conv("branch7x7dbl_5", 192, across),
    ),
    (Pool(maximum=False), square("branch_pool", 192, 1)),
  )


def at8(pool: Pool) -> Branches:
  fork = lambda name: (Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1)))
  return (
    (square("branch1x1", 320, 1),),
    (square("branch3x3_1", 384, 1), fork("branch3x3_2")),
    (square("branch3x3dbl_1", 448, 1), square("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")),
    (pool, square("branch_pool", 192, 1)),
  )


STEM: tuple[Step, ...] = (
  halving("conv2d_1a_3x3", 32),
  Conv("conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
  square("conv2d_2b_3x3", 64, 3),
  DOWN,
  square("conv2d_3b_1x1", 80, 1),
  Conv("conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
  DOWN,
)
BLOCKS: dict[str, Branches] = {
  "mixed_5b": at35(32),
  "mixed_5c": at35(64),
  "mixed_5d": at35(64),
  "mixed_6a": ((halving("branch3x3", 384),), double_branch(halving("branch3x3dbl_3", 96)), (DOWN,)),
  "mixed_6b": at17(128),
  "mixed_6c": at17(160),
  "mixed_6d": at17(160),
  "mixed_6e": at17(192),
  "mixed_7a": (
    (square("branch3x3_1", 192, 1), halving("branch3x3_2", 320)),
    (
      square("branch7x7x3_1", 192, 1),
      Conv("branch7x7x3_2", 192, (1, 7)),
      Conv("branch7x7x3_3", 192, (7, 1)),
      halving("branch7x7x3_4", 192),
    ),
    (DOWN,),
  ),
  "mixed_7b": at8(Pool(maximum=False)),
  "mixed_7c": at8(Pool()),
}


class ConvNormReLU(nn.Module):
  """A row `Conv`: convolution, batch norm over what it saw in training, ReLU."""

  row: Conv

  @nn.compact
  def __call__(self, h: Array) -> Array:
    """h [B, H, W, C] -> [B, h, w, row.features]."""
    row, zeros, ones = self.row, nn.initializers.zeros_init(), nn.initializers.ones_init()
    h = nn.Conv(row.features, row.kernel, row.stride, row.padding, use_bias=False, name="conv")(h)
    mean, bias = (self.param(name, zeros, (row.features,), jnp.float32) for name in ("mean", "bias"))
    variance, scale = (self.param(name, ones, (row.features,), jnp.float32) for name in ("variance", "scale"))
    return nn.relu((h - mean) * (scale * jax.lax.rsqrt(variance + 1e-3)) + bias)


def apply_step(step: Step, h: Array) -> Array:
  """h [B, H, W, C] after one step, within a module."""
  if isinstance(step, Conv):
    return ConvNormReLU(step, name=step.name)(h)
  if isinstance(step, Pool):
    window, strides = (3, 3), (step.stride, step.stride)
    if step.maximum:
      return nn.max_pool(h, window, strides, step.padding)
    return nn.avg_pool(h, window, strides, step.padding, count_include_pad=False)
  return jnp.concatenate([apply_step(each, h) for each in step], -1)


class InceptionBlock(nn.Module):
  """Branches of the same input, side by side."""

  branches: Branches

  @nn.compact
  def __call__(self, h: Array) -> Array:
    """h [B, H, W, C] -> [B, h, w, C']."""
    ends = []
    for branch in self.branches:
      end = h
      for step in branch:
        end = apply_step(step, end)
      ends.append(end)
    return jnp.concatenate(ends, -1)


class Inception(nn.Module):
  """All of it, after the resizing."""

  @nn.compact
  def __call__(self, pixels: Array) -> tuple[Array, Array]:
    """Pixels float [B, 299, 299, 3] in [0, 255] -> features [B, 2048], logits [B, 1008] without bias."""
    h = (pixels - 128) / 128
    for step in STEM:
      h = apply_step(step, h)
    for name, branches in BLOCKS.items():
      h = InceptionBlock(branches, name=name)(h)
    features = h.mean((1, 2))
    return features, Dense(CLASSES, use_bias=False, name="fc")(features)


def resize_bilinear(images: Array, side: int = SIDE) -> Array:
  """Images [B, H, W, C] -> float32 [B, side, side, C]: bilinear between places H / side apart, from
  the first one.
  """
  for axis in (2, 1):
    last = images.shape[axis] - 1
    places = np.arange(side, dtype=np.float32) * np.float32((last + 1) / side)
    below = places.astype(int)
    share = jnp.expand_dims(places - below, tuple(range(1, 4 - axis)))
    low, high = (
      jnp.take(images, place, axis).astype(jnp.float32) for place in (below, np.minimum(below + 1, last))
    )
    images = low + (high - low) * share
  return images


def preprocess_inception(images: Array) -> Array:
  """Images uint8 [B, H, W, 3 or 1 (grey)] -> the pixels that the network sees, float32 [B, 299, 299, 3]."""
  return resize_bilinear(jnp.broadcast_to(images, (*images.shape[:3], 3)))


def extract_inception(params: dict, images: Array) -> Extracted:
  """Images uint8 [B, H, W, 3 or 1 (grey)] -> features [B, 2048], logits [B, 1008] without bias;
  float32 throughout.
  """
  with jax.default_matmul_precision("highest"):
    return Extracted(*Inception().apply({"params": params}, preprocess_inception(images)))


def load_inception(arrays: Mapping[str, np.ndarray] | None) -> dict:
  """Arrays by flat name -> the parameters of `extract_inception`; UserError where there are none or they do
  not fit.
  """
  return weights.unpack_weights(arrays, Inception(), jnp.zeros((1, SIDE, SIDE, 3)), "inception")


INCEPTION = register_extractor(
  Extractor(
    name="inception",
    version="2015-12-05",
    preprocessing=f"{SIDE}x{SIDE}, bilinear as TensorFlow 1",
    apply=extract_inception,
    load=load_inception,
    batch_size=50,
  )
)
