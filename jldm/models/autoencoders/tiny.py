"""The tiny autoencoder TAESD, Bohan 2023 (github.com/madebyollin/taesd): convolutions and ReLUs,
distilled from a large one.

Its latents are those of the codec that it was distilled from, each a point.  Its images are in [0,
1] inside, and

  (1)  z <- 3 tanh(z / 3)

before they are decoded.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.models.autoencoders.kl import check_images
from jldm.models.autoencoders.posterior import Bottleneck, Gaussian, point
from jldm.nn.resample import Downsample, Upsample

Array = jax.Array

ACTIVATIONS = {
  "relu": nn.relu,
  "silu": nn.silu,
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "mish": jax.nn.mish,
}


class Block(nn.Module):
  """A residual block of three 3x3 convolutions, with a ReLU after the sum for any `activation` between
  them.
  """

  activation: str
  dtype: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> the same."""
    conv = lambda i, h: nn.Conv(x.shape[-1], (3, 3), padding=1, dtype=self.dtype, name=f"conv{i}")(h)
    h = x
    for i in (1, 2):
      h = ACTIVATIONS[self.activation](conv(i, h))
    return nn.relu(conv(3, h) + x)


class Encoder(nn.Module):
  """Images in [0, 1] to latents, halving before every level but the first."""

  features: int
  width: int
  blocks: tuple[int, ...]
  activation: str
  dtype: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> [B, h, w, features], h = H / 2^(levels - 1)."""
    h = nn.Conv(self.width, (3, 3), padding=1, dtype=self.dtype, name="in")(x)
    for level, blocks in enumerate(self.blocks):
      if level:
        h = Downsample(self.width, self.dtype, padding=(1, 1), use_bias=False, name=f"down{level}")(h)
      for i in range(blocks):
        h = Block(self.activation, self.dtype, name=f"level{level}_block{i}")(h)
    return nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="out")(h)


class Decoder(nn.Module):
  """Latents to images in [0, 1], doubling after every level but the last."""

  channels: int
  width: int
  blocks: tuple[int, ...]
  activation: str
  dtype: str

  @nn.compact
  def __call__(self, z: Array) -> Array:
    """z [B, h, w, C] -> [B, H, W, channels]."""
    h = nn.Conv(self.width, (3, 3), padding=1, dtype=self.dtype, name="in")(3 * jnp.tanh(z / 3))  # (1)
    h = ACTIVATIONS[self.activation](h)
    for level, blocks in reversed(list(enumerate(self.blocks))):
      for i in range(blocks):
        h = Block(self.activation, self.dtype, name=f"level{level}_block{i}")(h)
      if level:
        h = Upsample(self.width, self.dtype, use_bias=False, name=f"up{level}")(h)
    return nn.Conv(self.channels, (3, 3), padding=1, dtype=self.dtype, name="out")(h)


class TinyAutoencoder(nn.Module):
  """Images in [-1, 1] to a point over latents, and back.

  Any channels, and any size divisible by `factor` = 2^(levels - 1).  `encoder_blocks` and
  `decoder_blocks` have one entry a level, finest first; all levels are `width` wide; `activation`
  is one of ACTIVATIONS.

  Raises:
    UserError: another activation, or not as many levels of both.
  """

  channels: int = 3
  latent_channels: int = 4
  width: int = 64
  encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
  decoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
  activation: str = "relu"
  dtype: str = "float32"

  @property
  def factor(self) -> int:
    return 2 ** (len(self.encoder_blocks) - 1)

  def setup(self):
    if self.activation not in ACTIVATIONS:
      raise UserError(f"activation={self.activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    if len(self.encoder_blocks) != len(self.decoder_blocks):
      raise UserError(
        f"blocks of {len(self.encoder_blocks)} and {len(self.decoder_blocks)} levels; expected as many "
        f"of both"
      )
    part = lambda kind, features, blocks: kind(
      features, self.width, tuple(blocks), self.activation, self.dtype
    )
    self.encoder = part(Encoder, self.latent_channels, self.encoder_blocks)
    self.decoder = part(Decoder, self.channels, self.decoder_blocks)

  def encode(self, x: Array) -> Gaussian:
    """x [B, H, W, C] in [-1, 1] -> a point [B, H / factor, W / factor, latent_channels], in float32.

    Raises:
      ValueError: H or W is not divisible by `factor`, or C is not `channels`.
    """
    check_images(self, x)
    return point(self.encoder((x + 1) / 2).astype(jnp.float32))

  def decode(self, z: Array) -> Array:
    """z [B, h, w, latent_channels], raw -> images [B, h factor, w factor, C] in float32, near [-1, 1]."""
    return 2 * self.decoder(z).astype(jnp.float32) - 1

  def bottleneck(self, posterior: Gaussian) -> Bottleneck:
    """Nothing: a point costs nothing."""
    return Bottleneck({}, {}, {})

  def __call__(self, x: Array, keys: Array) -> tuple[Array, Gaussian]:
    """x [B, H, W, C], keys [B] -> (reconstruction, latents)."""
    posterior = self.encode(x)
    return self.decode(posterior.sample(keys)), posterior
