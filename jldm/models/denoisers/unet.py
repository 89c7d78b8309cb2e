"""The U-Net of latent diffusion, Rombach et al. 2022 (2112.10752), section 3.2 and appendix E; Stable Diffusion's by default."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.models.conditioners.concat import joined
from jldm.models.conditioners.estimate import beside
from jldm.models.conditioners.label import LabelEmbedding
from jldm.models.denoisers.log_variance import LogVariance
from jldm.nn.embedding import LevelEmbedding
from jldm.nn.norm import GroupNorm
from jldm.nn.remat import remat
from jldm.nn.resample import Downsample, Upsample, double, halve
from jldm.nn.resnet import ImageAttention, ResnetBlock
from jldm.nn.transformer import SpatialTransformer

Array = jax.Array
EPSILON = 1e-5  # of the published U-Nets' norms; their spatial transformers and codecs have 1e-6


class Layer(nn.Module):
  """A resnet block, and attention with that many heads (0: none), to tokens too where there are any."""

  features: int
  heads: int
  groups: int
  dtype: str

  @nn.compact
  def __call__(self, h: Array, embedding: Array, tokens: Array | None) -> Array:
    """h [B, H, W, C], embedding [B, E], tokens [B, M, D] or None -> [B, H, W, features]."""
    h = ResnetBlock(self.features, self.groups, self.dtype, EPSILON, name="resnet")(h, embedding)
    if not self.heads:
      return h
    if tokens is None:
      return ImageAttention(self.heads, self.groups, self.dtype, EPSILON, name="attention")(h)
    return SpatialTransformer(self.heads, self.groups, self.dtype, name="attention")(h, tokens)


class UNet(nn.Module):
  """Resnet blocks and attention from fine to coarse and back, where each meets the one of its scale on the way down.

  `widths` and `attention` have one entry a scale, finest first; `resnets` is the number a scale on the way down (one
  more on the way up).  `heads` are as many everywhere, or, with `head_width`, that wide.  The condition is ignored,
  a label added to the level (`classes`), tokens of `token_width` that are attended to, or a label as one such token
  (both).  Without `resample_conv`, means of 2x2 and nearest neighbours resample alone.  `self_conditioning`,
  `log_variance` and `remat` are as in DiT.
  """

  widths: tuple[int, ...] = (320, 640, 1280, 1280)
  resnets: int = 2
  attention: tuple[bool, ...] = (True, True, True, False)
  heads: int = 8
  head_width: int = 0
  classes: int = 0
  token_width: int = 0
  groups: int = 32
  resample_conv: bool = True
  self_conditioning: bool = False
  log_variance: bool = False
  remat: str = "none"
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, z: Array, level: Array, condition: Array, estimate: Array | None = None, *, concat: Array | None = None
  ) -> Array | tuple[Array, Array]:
    """z [B, H, W, C] at level [B], about -4 to 1 -> [B, H, W, C] in float32; with `log_variance` (that, [B, 1, 1, 1]).

    `condition` is labels int [B] (-1: unknown), or tokens [B, M, token_width] where there are no classes; `concat` is as
    in DiT.

    Raises:
      UserError: H or W is not divisible by 2^(scales - 1), or fields or tokens that do not fit.
    """
    self.check(z, condition)
    embedding, tokens = self.conditions(level, condition)
    conv = lambda features, name, **init: nn.Conv(features, (3, 3), padding=1, dtype=self.dtype, name=name, **init)
    block = remat(Layer, self.remat)
    layer = lambda scale, name, h: block(
      self.widths[scale], self.heads_at(scale) if self.attention[scale] else 0, self.groups, self.dtype, name=name
    )(h, embedding, tokens)
    last = len(self.widths) - 1
    h = conv(self.widths[0], "in")(joined(beside(z, estimate) if self.self_conditioning else z, concat))
    skips = [h]
    for scale in range(last + 1):
      for i in range(self.resnets):
        skips.append(h := layer(scale, f"down{scale}_{i}", h))
      if scale < last:
        skips.append(h := self.halved(h, f"down{scale}"))
    h = block(self.widths[-1], self.heads_at(last), self.groups, self.dtype, name="middle")(h, embedding, tokens)
    h = remat(ResnetBlock, self.remat)(self.widths[-1], self.groups, self.dtype, EPSILON, name="middle_resnet")(h, embedding)
    for scale in reversed(range(last + 1)):
      for i in range(self.resnets + 1):
        h = layer(scale, f"up{scale}_{i}", jnp.concatenate([h, skips.pop()], -1))
      if scale:
        h = self.doubled(h, f"up{scale}")
    h = nn.silu(GroupNorm(self.groups, EPSILON, self.dtype, name="norm")(h))
    h = conv(z.shape[-1], "out", kernel_init=nn.initializers.zeros_init())(h).astype(jnp.float32)
    return (h, LogVariance(name="log_variance")(level)) if self.log_variance else h

  def check(self, z: Array, condition: Array) -> None:
    _, h, w, _ = z.shape
    factor = 2 ** (len(self.widths) - 1)
    if h % factor or w % factor:
      raise UserError(f"latents of {h}x{w}; expected sides divisible by {factor} for {len(self.widths)} widths")
    if len(self.attention) != len(self.widths):
      raise UserError(f"attention={self.attention}; expected one bool for each of widths={self.widths}")
    if self.token_width and not self.classes and condition.shape[2:] != (self.token_width,):
      raise UserError(f"a condition of shape {condition.shape}; expected tokens [B, M, {self.token_width}]")

  def heads_at(self, scale: int) -> int:
    width = self.widths[scale]
    if self.head_width and width % self.head_width:
      raise UserError(f"head_width={self.head_width} does not divide a width of {width}")
    return width // self.head_width if self.head_width else self.heads

  def conditions(self, level: Array, condition: Array) -> tuple[Array, Array | None]:
    """Level [B], labels [B] or tokens [B, M, token_width] -> embedding [B, 4 widths[0]], tokens or None."""
    width = 4 * self.widths[0]
    embedding = LevelEmbedding(width, self.widths[0], self.dtype, name="level")(level)
    if not self.classes:
      return embedding, condition if self.token_width else None
    label = LabelEmbedding(self.classes, self.token_width or width, name="label")(condition).astype(self.dtype)
    return (embedding, label[:, None]) if self.token_width else (embedding + label, None)

  def halved(self, h: Array, name: str) -> Array:
    return Downsample(h.shape[-1], self.dtype, (1, 1), name=name)(h) if self.resample_conv else halve(h)

  def doubled(self, h: Array, name: str) -> Array:
    return Upsample(h.shape[-1], self.dtype, name=name)(h) if self.resample_conv else double(h)
