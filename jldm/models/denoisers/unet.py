"""The U-Net of latent diffusion, Rombach et al. 2022 (2112.10752), section 3.2 and appendix E; Stable
Diffusion's by default.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.specs import Output
from jldm.models.denoisers.inputs import (
  Inputs,
  check_inputs,
  condition_vectors,
  read_tokens,
  with_concat,
  with_estimate,
)
from jldm.models.denoisers.log_variance import LogVariance
from jldm.nn.embedding import LabelEmbedding
from jldm.nn.norm import GroupNorm
from jldm.nn.remat import remat
from jldm.nn.resample import Downsample, Upsample, double, halve
from jldm.nn.resnet import ImageAttention, ResnetBlock
from jldm.nn.transformer import SpatialTransformer

Array = jax.Array
EPSILON = 1e-5  # of the published U-Nets' norms; their spatial transformers and codecs have 1e-6


class Layer(nn.Module):
  """A resnet block, then self-attention (unless `heads` is 0) and, if there are tokens, attention to them."""

  features: int
  heads: int
  groups: int
  dtype: str
  transformer_layers: int = 1

  @nn.compact
  def __call__(self, h: Array, embedding: Array, tokens: Array | None, mask: Array | None) -> Array:
    """h [B, H, W, C], embedding [B, E], tokens [B, M, D], mask [B, M] -> [B, H, W, features]."""
    h = ResnetBlock(self.features, self.groups, self.dtype, EPSILON, name="resnet")(h, embedding)
    if not self.heads:
      return h
    if tokens is None:
      return ImageAttention(self.heads, self.groups, self.dtype, EPSILON, name="attention")(h)
    transformer = SpatialTransformer(
      self.heads, self.groups, self.dtype, self.transformer_layers, name="attention"
    )
    return transformer(h, tokens, mask)


class UNet(nn.Module):
  """Resnet blocks and attention from fine to coarse and back, with skip connections at each scale.

  `widths` and `attention` have one entry per scale, the finest first.  `resnets` is the number of
  blocks per scale on the way down; the way up has one more.  Each attention has `heads` heads or,
  with `head_width`, heads of that width.  Without `resample_conv` there is no convolution at a
  change of scale: only means of 2x2, or nearest neighbours.

  `classes` adds a label to the noise level.  `token_width` adds attention to tokens of that width.
  With both, the label is the one token.  Attention to tokens is a transformer, of one block or, with
  `transformer_layers`, of as many as that has at the scale; the middle has those of the coarsest.
  `vector_layers` is the number of dense layers on the input `vector`.  `target_time`, `guidance_scale`,
  `self_conditioning`, `log_variance` and `remat` are as in DiT.
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
  transformer_layers: tuple[int, ...] = ()
  vector_layers: int = 1
  target_time: bool = False
  guidance_scale: bool = False
  self_conditioning: bool = False
  log_variance: bool = False
  remat: str = "none"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, z: Array, noise_level: Array, inputs: Inputs, estimate: Array | None = None) -> Output:
    """z [B, H, W, C] at noise_level [B], about -4 to 1 -> values [B, H, W, C] in float32.

    `inputs` are those of jldm.models.denoisers.inputs, estimate [B, H, W, C].  A network that was
    initialised with `concat` or `vector` is always called with it.

    Raises:
      UserError: H or W is not divisible by 2^(scales - 1), or fields or inputs do not fit.
    """
    self.check_latents(z)
    channels = z.shape[-1]
    embedding = self.embedding(noise_level, inputs)  # [B, 4 widths[0]]
    tokens, mask = self.context(inputs)  # [B, M, token_width], [B, M], or None
    scales = range(len(self.widths))
    coarsest = scales[-1]
    if self.self_conditioning:
      z = with_estimate(z, estimate)  # [B, H, W, 2 C]
    h = self.conv(self.widths[0], "in")(with_concat(z, inputs))  # [B, H, W, widths[0]]
    skips = [h]
    # down: h, w halve from scale to scale
    for scale in scales:
      for i in range(self.resnets):
        layer = self.layer(scale, self.attention[scale], f"down{scale}_{i}")
        h = layer(h, embedding, tokens, mask)  # [B, h, w, widths[scale]]
        skips.append(h)
      if scale < coarsest:
        h = self.downsample(h, f"down{scale}")  # [B, h / 2, w / 2, widths[scale]]
        skips.append(h)
    # middle: [B, h, w, widths[-1]] at the coarsest scale
    h = self.layer(coarsest, True, "middle")(h, embedding, tokens, mask)
    resnet = remat(ResnetBlock, self.remat)
    h = resnet(self.widths[-1], self.groups, self.dtype, EPSILON, name="middle_resnet")(h, embedding)
    # up: h, w double from scale to scale
    for scale in reversed(scales):
      for i in range(self.resnets + 1):
        h = jnp.concatenate([h, skips.pop()], -1)  # [B, h, w, C of h + C of the skip]
        layer = self.layer(scale, self.attention[scale], f"up{scale}_{i}")
        h = layer(h, embedding, tokens, mask)  # [B, h, w, widths[scale]]
      if scale > 0:
        h = self.upsample(h, f"up{scale}")  # [B, 2 h, 2 w, widths[scale]]
    h = nn.silu(GroupNorm(self.groups, EPSILON, self.dtype, name="norm")(h))
    out = self.conv(channels, "out", kernel_init=nn.initializers.zeros_init())(h)  # [B, H, W, C]
    log_variance = LogVariance(name="log_variance")(noise_level) if self.log_variance else None  # [B]
    return Output(out.astype(jnp.float32), log_variance)

  def check_latents(self, z: Array) -> None:
    _, h, w, _ = z.shape
    factor = 2 ** (len(self.widths) - 1)
    if h % factor or w % factor:
      raise UserError(
        f"latents of {h}x{w}; expected sides divisible by {factor} for {len(self.widths)} widths"
      )
    if self.transformer_layers and len(self.transformer_layers) != len(self.widths):
      raise UserError(
        f"transformer_layers={self.transformer_layers}; expected one number for each of widths={self.widths}"
      )
    if len(self.attention) != len(self.widths):
      raise UserError(f"attention={self.attention}; expected one bool for each of widths={self.widths}")

  def embedding(self, noise_level: Array, inputs: Inputs) -> Array:
    """The vector [B, 4 widths[0]] that every resnet block adds."""
    classes = 0 if self.token_width else self.classes
    first, *others = condition_vectors(
      self, noise_level, inputs, 4 * self.widths[0], classes, self.widths[0], vector_layers=self.vector_layers
    )
    return sum(others, first)

  def context(self, inputs: Inputs) -> tuple[Array | None, Array | None]:
    """The tokens [B, M, token_width] that attention sees besides the image, and their mask [B, M]."""
    if not self.token_width:
      return None, None
    if not self.classes:
      return read_tokens(inputs, self.token_width)
    check_inputs(inputs, classes=self.classes)
    label = LabelEmbedding(self.classes, self.token_width, name="label")(inputs["label"])
    return label.astype(self.dtype)[:, None], None  # [B, 1, token_width]

  def layer(self, scale: int, attention: bool, name: str) -> nn.Module:
    heads = self.heads_at(scale) if attention else 0
    layers = self.transformer_layers[scale] if self.transformer_layers else 1
    return remat(Layer, self.remat)(self.widths[scale], heads, self.groups, self.dtype, layers, name=name)

  def heads_at(self, scale: int) -> int:
    width = self.widths[scale]
    if self.head_width and width % self.head_width:
      raise UserError(f"head_width={self.head_width} does not divide a width of {width}")
    return width // self.head_width if self.head_width else self.heads

  def conv(self, features: int, name: str, **init: nn.initializers.Initializer) -> nn.Conv:
    return nn.Conv(features, (3, 3), padding=1, dtype=self.dtype, name=name, **init)

  def downsample(self, h: Array, name: str) -> Array:
    return Downsample(h.shape[-1], self.dtype, (1, 1), name=name)(h) if self.resample_conv else halve(h)

  def upsample(self, h: Array, name: str) -> Array:
    return Upsample(h.shape[-1], self.dtype, name=name)(h) if self.resample_conv else double(h)
