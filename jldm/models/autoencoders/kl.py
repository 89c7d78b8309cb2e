"""The KL autoencoder of latent diffusion, Rombach et al. 2022 (2112.10752), appendix G: convolutions,
attention in the middle.
"""

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.models.autoencoders.posterior import CEILING, FLOOR, Bottleneck, Gaussian
from jldm.nn.attention import Kernel, attend
from jldm.nn.norm import GroupNorm
from jldm.nn.remat import remat
from jldm.nn.resample import Downsample, Upsample, depth_to_space, space_to_depth
from jldm.nn.resnet import ImageAttention, ResnetBlock

Array = jax.Array


class Middle(nn.Module):
  """Resnet block, attention over all places, resnet block, at the coarsest level."""

  attention: bool
  groups: int
  dtype: str
  remat: str
  kernel: Kernel = attend

  @nn.compact
  def __call__(self, h: Array) -> Array:
    width, resnet = h.shape[-1], remat(ResnetBlock, self.remat)
    h = resnet(width, self.groups, self.dtype, name="resnet1")(h)
    if self.attention:
      h = remat(ImageAttention, self.remat)(
        groups=self.groups, dtype=self.dtype, kernel=self.kernel, name="attention"
      )(h)
    return resnet(width, self.groups, self.dtype, name="resnet2")(h)


class Encoder(nn.Module):
  """Images to features of the posterior, halving between levels."""

  features: int
  widths: tuple[int, ...]
  resnets: int
  attention: tuple[int, ...]
  middle_attention: bool
  groups: int
  patch: int
  dtype: str
  remat: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> [B, h, w, features], h = H / (patch 2^(levels - 1))."""
    resnet, attention = remat(ResnetBlock, self.remat), remat(ImageAttention, self.remat)
    h = nn.Conv(self.widths[0], (3, 3), padding=1, dtype=self.dtype, name="in")(space_to_depth(x, self.patch))
    for level, width in enumerate(self.widths):
      if level:
        h = Downsample(h.shape[-1], self.dtype, name=f"down{level}")(h)
      for i in range(self.resnets):
        h = resnet(width, self.groups, self.dtype, name=f"level{level}_resnet{i}")(h)
        if level in self.attention:
          h = attention(groups=self.groups, dtype=self.dtype, name=f"level{level}_attention{i}")(h)
    h = Middle(self.middle_attention, self.groups, self.dtype, self.remat, name="middle")(h)
    h = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm")(h))
    return nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="out")(h)


class Decoder(nn.Module):
  """Latents to images, doubling between levels; one resnet block a level more than the encoder."""

  channels: int
  widths: tuple[int, ...]
  resnets: int
  attention: tuple[int, ...]
  middle_attention: bool
  groups: int
  patch: int
  dtype: str
  remat: str
  kernel: Kernel = attend

  @nn.compact
  def __call__(self, z: Array, levels: int | None = None) -> Array:
    """z [B, h, w, C] -> [B, H, W, channels], or what the middle and then so many of the coarsest levels
    give.
    """
    resnet, attention = remat(ResnetBlock, self.remat), remat(ImageAttention, self.remat)
    h = nn.Conv(self.widths[-1], (3, 3), padding=1, dtype=self.dtype, name="in")(z)
    h = Middle(self.middle_attention, self.groups, self.dtype, self.remat, self.kernel, name="middle")(h)
    for done, (level, width) in enumerate(list(enumerate(self.widths))[::-1][:levels]):
      if done:
        h = Upsample(h.shape[-1], self.dtype, name=f"up{level + 1}")(h)
      for i in range(self.resnets + 1):
        h = resnet(width, self.groups, self.dtype, name=f"level{level}_resnet{i}")(h)
        if level in self.attention:
          h = attention(
            groups=self.groups, dtype=self.dtype, kernel=self.kernel, name=f"level{level}_attention{i}"
          )(h)
    if levels is not None:
      return h
    h = nn.silu(GroupNorm(self.groups, dtype=self.dtype, name="norm")(h))
    features = self.channels * self.patch**2
    return depth_to_space(nn.Conv(features, (3, 3), padding=1, dtype=self.dtype, name="out")(h), self.patch)


def factor_of(network: Any) -> int:
  """How many pixels of a side become one latent."""
  return network.patch * 2 ** (len(network.widths) - 1)


def decoder_features(network: Any) -> int:
  """The channels that the decoder takes; UserError where latents of another number meet it without a
  1x1 convolution.
  """
  features = network.features or network.latent_channels
  if features != network.latent_channels and not network.pointwise:
    raise UserError(
      f"features={features} and latent_channels={network.latent_channels} without pointwise; make them equal"
    )
  return features


def shared_fields(network: Any) -> tuple:
  """What the encoder and the decoder of a network have in common, in the order of their fields."""
  return (
    tuple(network.widths),
    network.resnets,
    tuple(network.attention),
    network.middle_attention,
    network.groups,
    network.patch,
    network.dtype,
    network.remat,
  )


def check_images(network: Any, x: Array) -> None:
  """ValueError unless x [B, H, W, C] fits the network's factor and channels."""
  if x.shape[1] % network.factor or x.shape[2] % network.factor or x.shape[3] != network.channels:
    raise ValueError(
      f"images of {x.shape[1]}x{x.shape[2]}x{x.shape[3]}; expected sides divisible by {network.factor} "
      f"and {network.channels} channels"
    )


class KLAutoencoder(nn.Module):
  """Images in [-1, 1] to a diagonal Gaussian over latents, and back.

  Any channels, and any size divisible by `factor` = patch 2^(levels - 1).  `widths` has one entry a
  level, finest first, each divisible by `groups`; `attention` has the levels whose resnet blocks
  are each followed by attention; `patch` folds patch x patch pixels into channels at both ends, for
  speed.  `pointwise` puts a 1x1 convolution on either side of the latents, and `features` (0:
  latent_channels) is how many channels the decoder takes, the encoder twice that. `remat` names
  what each block keeps for the backward pass, of jldm.nn.remat.
  """

  channels: int = 3
  latent_channels: int = 4
  widths: tuple[int, ...] = (128, 256, 512, 512)
  resnets: int = 2
  groups: int = 32
  patch: int = 1
  dtype: str = "float32"
  attention: tuple[int, ...] = ()
  middle_attention: bool = True
  pointwise: bool = True
  features: int = 0
  remat: str = "none"

  @property
  def factor(self) -> int:
    return factor_of(self)

  def setup(self):
    features = decoder_features(self)
    self.encoder = Encoder(2 * features, *shared_fields(self))
    self.decoder = Decoder(self.channels, *shared_fields(self))
    if self.pointwise:
      self.moments = nn.Conv(2 * self.latent_channels, (1, 1), dtype=self.dtype)
      self.latents = nn.Conv(features, (1, 1), dtype=self.dtype)

  def encode(self, x: Array) -> Gaussian:
    """x [B, H, W, C] in [-1, 1] -> posterior over [B, H / factor, W / factor, latent_channels], in float32.

    Raises:
      ValueError: H or W is not divisible by `factor`, or C is not `channels`.
    """
    check_images(self, x)
    moments = self.encoder(x)
    if self.pointwise:
      moments = self.moments(moments)
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, -1)
    return Gaussian(mean, jnp.clip(log_variance, FLOOR, CEILING))

  def decode(self, z: Array) -> Array:
    """z [B, h, w, latent_channels], raw -> images [B, h factor, w factor, C] in float32, near [-1, 1]."""
    return self.decoder(self.decoder_input(z)).astype(jnp.float32)

  def decoder_input(self, z: Array) -> Array:
    """z [B, h, w, latent_channels], raw -> what the decoder's first convolution is fed, as large."""
    return self.latents(z) if self.pointwise else z

  def bottleneck(self, posterior: Gaussian) -> Bottleneck:
    """The KL [B] in nats, divided by the values of an image."""
    _, h, w, _ = posterior.mean.shape
    kl = posterior.kl() / (h * w * self.factor**2 * self.channels)
    return Bottleneck({"kl": kl}, {}, {})

  def __call__(self, x: Array, keys: Array) -> tuple[Array, Gaussian]:
    """x [B, H, W, C], keys [B] -> (reconstruction of a sampled latent, posterior)."""
    posterior = self.encode(x)
    return self.decode(posterior.sample(keys)), posterior
