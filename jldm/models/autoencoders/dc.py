"""The deep compression autoencoder, Chen et al. 2024 (2410.10733): 32 to 128 pixels of a side become one
latent.

Halving and doubling carry a shortcut without parameters, which moves places into channels and
averages channels, or repeats channels and moves them into places (figure 4 there).  Coarse levels
may have blocks of EfficientViT, Cai et al. 2022 (2205.14756), whose attention costs as much as
there are places: with ReLU queries q, keys k and values v, a head is

  (1)  out_i = sum_j (q_i . k_j) v_j / (sum_j q_i . k_j + 1e-15) = q_i (sum_j k_j v_j^T) / (q_i .
       sum_j k_j + 1e-15)

and more heads come from queries, keys and values that were convolved, a scale each.  Latents are a
point each.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.models.autoencoders.kl import check_images
from jldm.models.autoencoders.posterior import Bottleneck, Gaussian, point
from jldm.nn.dense import Dense
from jldm.nn.norm import FrozenBatchNorm, RMSNorm
from jldm.nn.resample import Upsample, shuffle, unshuffle

Array = jax.Array

ACTIVATIONS = {"relu": nn.relu, "silu": nn.silu}
NORMS = {
  "rms": lambda dtype, name: RMSNorm(1e-5, dtype, use_bias=True, name=name),
  "batch": lambda dtype, name: FrozenBatchNorm(1e-5, dtype, name=name),
}


class Convolutions(nn.Module):
  """A residual block: 3x3 convolution, one of ACTIVATIONS, 3x3 convolution, one of NORMS."""

  norm: str = "rms"
  activation: str = "silu"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> the same."""
    conv = lambda i, h: nn.Conv(
      x.shape[-1], (3, 3), padding=1, use_bias=i == 1, dtype=self.dtype, name=f"conv{i}"
    )(h)
    h = conv(2, ACTIVATIONS[self.activation](conv(1, x)))
    return x + NORMS[self.norm](self.dtype, "norm")(h)


class LinearAttention(nn.Module):
  """(1) over all places with heads `width` wide, then a gated convolution, each with a residual connection.

  `scales` are the sides of the convolutions that give further queries, keys and values.
  """

  width: int = 32
  scales: tuple[int, ...] = ()
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> the same; (1) in float32.

    Raises:
      UserError: `width` does not divide C.
    """
    channels = x.shape[-1]
    if channels % self.width:
      raise UserError(f"heads {self.width} wide do not divide {channels} channels")
    norm = lambda name: NORMS["rms"](self.dtype, name)
    qkv = Dense(3 * channels, use_bias=False, dtype=self.dtype, name="qkv")(x)
    conv = lambda side, groups, name: nn.Conv(
      3 * channels,
      (side, side),
      padding=side // 2,
      feature_group_count=groups,
      use_bias=False,
      dtype=self.dtype,
      name=name,
    )
    further = [
      conv(1, 3 * channels // self.width, f"scale{i}_out")(conv(side, 3 * channels, f"scale{i}_in")(qkv))
      for i, side in enumerate(self.scales)
    ]
    h = linear_attention(jnp.concatenate([qkv, *further], -1), self.width).astype(self.dtype)
    x = x + norm("attention_norm")(Dense(channels, use_bias=False, dtype=self.dtype, name="attention_out")(h))
    return x + norm("gate_norm")(self.gated(x))

  def gated(self, x: Array) -> Array:
    """x [B, H, W, C] -> the same: a convolution of each of 8 C channels, of which half gate the others."""
    channels = x.shape[-1]
    h = nn.silu(Dense(8 * channels, dtype=self.dtype, name="gate_in")(x))
    h = nn.Conv(
      8 * channels, (3, 3), padding=1, feature_group_count=8 * channels, dtype=self.dtype, name="gate_depth"
    )(h)
    value, gate = jnp.split(h, 2, -1)
    return Dense(channels, use_bias=False, dtype=self.dtype, name="gate_out")(value * nn.silu(gate))


def linear_attention(qkv: Array, width: int) -> Array:
  """(1) of [B, H, W, 3 n width], a query, a key and a value for each of n heads in turn -> [B, H, W, n
  width] in float32.
  """
  b, h, w, channels = qkv.shape
  heads = qkv.astype(jnp.float32).reshape(b, h * w, channels // (3 * width), 3, width)
  q, k, v = (nn.relu(heads[..., 0, :]), nn.relu(heads[..., 1, :]), heads[..., 2, :])  # [B, L, n, width]
  state = jnp.einsum("blnk,blnv->bnkv", k, v)
  weight = jnp.einsum("blnk,bnk->bln", q, k.sum(1))[..., None]
  out = jnp.einsum("blnk,bnkv->blnv", q, state) / (weight + 1e-15)
  return out.reshape(b, h, w, channels // 3)


class Down(nn.Module):
  """Half the sides: a convolution of stride 2, or one whose places move into channels; and the shortcut, or
  not.
  """

  features: int
  strided: bool
  shortcut: bool
  dtype: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> [B, H / 2, W / 2, features].

    Raises:
      UserError: features that places cannot become, or that the shortcut's do not divide into.
    """
    if not self.strided and self.features % 4:
      raise UserError(
        f"four places become {self.features} channels; expected a multiple of 4, or strided=True"
      )
    conv = lambda features, stride: nn.Conv(
      features, (3, 3), stride, padding=1, dtype=self.dtype, name="conv"
    )(x)
    h = conv(self.features, 2) if self.strided else unshuffle(conv(self.features // 4, 1), 2)
    return h + average_channels(unshuffle(x, 2), self.features) if self.shortcut else h


class Up(nn.Module):
  """Double the sides: of nearest neighbours, convolved, or by channels that move into places; and the
  shortcut, or not.
  """

  features: int
  nearest: bool
  shortcut: bool
  dtype: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> [B, 2 H, 2 W, features]."""
    if self.nearest:
      h = Upsample(self.features, self.dtype, name="nearest")(x)
    else:
      h = shuffle(nn.Conv(4 * self.features, (3, 3), padding=1, dtype=self.dtype, name="conv")(x), 2)
    return h + shuffle(repeat_channels(x, 4 * self.features), 2) if self.shortcut else h


def average_channels(x: Array, features: int) -> Array:
  """[..., C] -> [..., features], means of neighbouring channels; UserError unless features divide C."""
  if x.shape[-1] % features:
    raise UserError(
      f"a shortcut averages {x.shape[-1]} channels to {features}; expected a divisor of {x.shape[-1]}"
    )
  return x.reshape(*x.shape[:-1], features, -1).mean(-1)


def repeat_channels(x: Array, features: int) -> Array:
  """[..., C] -> [..., features], each channel as often as it takes; UserError unless C divides features."""
  if features % x.shape[-1]:
    raise UserError(
      f"a shortcut repeats {x.shape[-1]} channels to {features}; expected a multiple of {x.shape[-1]}"
    )
  return jnp.repeat(x, features // x.shape[-1], -1)


@dataclasses.dataclass(frozen=True)
class Level:
  """So many blocks of that width; the finest level of all may have none, and its first or last
  convolution resamples then.
  """

  width: int
  blocks: int
  block: Convolutions | LinearAttention = Convolutions()

  def applied(self, parent: nn.Module, name: str, h: Array) -> Array:
    """h [B, H, W, C] through the blocks, as children of a module."""
    for i in range(self.blocks):
      h = self.block.clone(parent=parent, name=f"{name}_block{i}", dtype=parent.dtype)(h)
    return h


def levels_of(blocks: tuple[int, ...]) -> tuple[Level, ...]:
  """Three levels of convolutions, then three with attention, as SANA's."""
  attention = LinearAttention(scales=(5,))
  kinds = (Convolutions(),) * 3 + (attention,) * 3
  return tuple(map(Level, (128, 256, 512, 512, 1024, 1024), blocks, kinds))


class Encoder(nn.Module):
  """Images to latents, halving between levels."""

  features: int
  levels: tuple[Level, ...]
  strided: bool
  shortcut: bool
  dtype: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> [B, h, w, features], h = H / 2^(levels - 1)."""
    finest, *rest = self.levels
    down = lambda width, shortcut, name, h: Down(width, self.strided, shortcut, self.dtype, name=name)(h)
    conv = lambda width, name, h: nn.Conv(width, (3, 3), padding=1, dtype=self.dtype, name=name)(h)
    h = conv(finest.width, "in", x) if finest.blocks else down(rest[0].width, False, "in", x)
    for i, level in enumerate(self.levels):
      if i > (not finest.blocks):
        h = down(level.width, True, f"down{i}", h)
      h = level.applied(self, f"level{i}", h)
    out = conv(self.features, "out", h)
    return out + average_channels(h, self.features) if self.shortcut else out


class Decoder(nn.Module):
  """Latents to images, doubling between levels."""

  channels: int
  levels: tuple[Level, ...]
  nearest: bool
  shortcut: bool
  activation: str
  dtype: str

  @nn.compact
  def __call__(self, z: Array) -> Array:
    """z [B, h, w, C] -> [B, H, W, channels]."""
    finest, coarsest = self.levels[0], self.levels[-1]
    up = lambda width, shortcut, name, h: Up(width, self.nearest, shortcut, self.dtype, name=name)(h)
    conv = lambda width, name, h: nn.Conv(width, (3, 3), padding=1, dtype=self.dtype, name=name)(h)
    h = conv(coarsest.width, "in", z)
    if self.shortcut:
      h = h + repeat_channels(z, coarsest.width)
    for i, level in reversed(list(enumerate(self.levels))):
      if i + 1 < len(self.levels) and level.blocks:
        h = up(level.width, True, f"up{i + 1}", h)
      h = level.applied(self, f"level{i}", h)
    h = ACTIVATIONS[self.activation](NORMS["rms"](self.dtype, "norm")(h))
    return conv(self.channels, "out", h) if finest.blocks else up(self.channels, False, "out", h)


class DCAutoencoder(nn.Module):
  """Images in [-1, 1] to a point over latents, and back.

  Any channels, and any size divisible by `factor` = 2^(levels - 1).  The levels of both are ordered from
  the finest. `strided` and `nearest` choose how halves and doubles are made, `out_shortcut` and
  `in_shortcut` whether latents have a shortcut of the coarsest level, whose width they divide.  By
  default the network of SANA (2410.10629).
  """

  channels: int = 3
  latent_channels: int = 32
  encoder_levels: tuple[Level, ...] = levels_of((2, 2, 2, 3, 3, 3))
  decoder_levels: tuple[Level, ...] = levels_of((3, 3, 3, 3, 3, 3))
  strided: bool = True
  nearest: bool = True
  out_shortcut: bool = True
  in_shortcut: bool = True
  activation: str = "relu"
  dtype: str = "float32"

  @property
  def factor(self) -> int:
    return 2 ** (len(self.encoder_levels) - 1)

  def setup(self):
    self.encoder = Encoder(
      self.latent_channels, tuple(self.encoder_levels), self.strided, self.out_shortcut, self.dtype
    )
    self.decoder = Decoder(
      self.channels, tuple(self.decoder_levels), self.nearest, self.in_shortcut, self.activation, self.dtype
    )

  def encode(self, x: Array) -> Gaussian:
    """x [B, H, W, C] in [-1, 1] -> a point [B, H / factor, W / factor, latent_channels], in float32.

    Raises:
      ValueError: H or W is not divisible by `factor`, or C is not `channels`.
    """
    check_images(self, x)
    return point(self.encoder(x).astype(jnp.float32))

  def decode(self, z: Array) -> Array:
    """z [B, h, w, latent_channels], raw -> images [B, h factor, w factor, C] in float32, near [-1, 1]."""
    return self.decoder(z).astype(jnp.float32)

  def bottleneck(self, posterior: Gaussian) -> Bottleneck:
    """Nothing: a point costs nothing."""
    return Bottleneck({}, {}, {})

  def __call__(self, x: Array, keys: Array) -> tuple[Array, Gaussian]:
    """x [B, H, W, C], keys [B] -> (reconstruction, latents)."""
    posterior = self.encode(x)
    return self.decode(posterior.sample(keys)), posterior
