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
  """A resnet block, then attention with that many heads (0: none), to tokens too if there are any."""

  features: int
  heads: int
  groups: int
  dtype: str

  @nn.compact
  def __call__(self, h: Array, embedding: Array, tokens: Array | None, mask: Array | None) -> Array:
    """h [B, H, W, C], embedding [B, E], tokens [B, M, D] or None, mask [B, M] or None -> [B, H, W, features]."""
    h = ResnetBlock(self.features, self.groups, self.dtype, EPSILON, name="resnet")(h, embedding)
    if not self.heads:
      return h
    if tokens is None:
      return ImageAttention(self.heads, self.groups, self.dtype, EPSILON, name="attention")(h)
    return SpatialTransformer(self.heads, self.groups, self.dtype, name="attention")(h, tokens, mask)


class UNet(nn.Module):
  """Resnet blocks and attention from fine to coarse and back; on the way up each meets one of its
  scale on the way down.

  `widths` and `attention` have one entry per scale, finest first; `resnets` is the number per scale
  on the way down (one more on the way up).  `heads` are as many everywhere, or, with `head_width`,
  that wide.  Without `resample_conv`, means of 2x2 and nearest neighbours resample alone. `classes`
  adds a label to the noise level; `token_width` attends to tokens that wide; both make the label
  the one token that is attended to.  `target_time`, `guidance_scale`, `self_conditioning`,
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
    self.check(z)
    conditions = self.embedding(noise_level, inputs), *self.context(inputs)
    scales = range(len(self.widths))
    coarsest = scales[-1]
    h = self.conv(self.widths[0], "in")(
      with_concat(with_estimate(z, estimate) if self.self_conditioning else z, inputs)
    )
    skips = [h]
    for scale in scales:
      for i in range(self.resnets):
        h = self.layer(scale, self.attention[scale], f"down{scale}_{i}")(
          h, *conditions
        )  # [B, h, w, widths[scale]]
        skips.append(h)
      if scale < coarsest:
        h = self.halved(h, f"down{scale}")  # [B, h / 2, w / 2, widths[scale]]
        skips.append(h)
    h = self.layer(coarsest, True, "middle")(h, *conditions)
    resnet = remat(ResnetBlock, self.remat)
    h = resnet(self.widths[coarsest], self.groups, self.dtype, EPSILON, name="middle_resnet")(
      h, conditions[0]
    )
    for scale in reversed(scales):
      for i in range(self.resnets + 1):
        h = jnp.concatenate([h, skips.pop()], -1)
        h = self.layer(scale, self.attention[scale], f"up{scale}_{i}")(
          h, *conditions
        )  # [B, h, w, widths[scale]]
      if scale > 0:
        h = self.doubled(h, f"up{scale}")  # [B, 2 h, 2 w, widths[scale]]
    h = nn.silu(GroupNorm(self.groups, EPSILON, self.dtype, name="norm")(h))
    h = self.conv(z.shape[-1], "out", kernel_init=nn.initializers.zeros_init())(h).astype(
      jnp.float32
    )  # [B, H, W, C]
    return Output(h, LogVariance(name="log_variance")(noise_level) if self.log_variance else None)

  def check(self, z: Array) -> None:
    _, h, w, _ = z.shape
    factor = 2 ** (len(self.widths) - 1)
    if h % factor or w % factor:
      raise UserError(
        f"latents of {h}x{w}; expected sides divisible by {factor} for {len(self.widths)} widths"
      )
    if len(self.attention) != len(self.widths):
      raise UserError(f"attention={self.attention}; expected one bool for each of widths={self.widths}")

  def embedding(self, noise_level: Array, inputs: Inputs) -> Array:
    """What every resnet block adds, [B, 4 widths[0]]."""
    classes = 0 if self.token_width else self.classes
    first, *others = condition_vectors(self, noise_level, inputs, 4 * self.widths[0], classes, self.widths[0])
    return sum(others, first)

  def context(self, inputs: Inputs) -> tuple[Array | None, Array | None]:
    """What attention looks at besides the image: tokens [B, M, token_width] and their mask [B, M], or None."""
    if not self.token_width:
      return None, None
    if not self.classes:
      return read_tokens(inputs, self.token_width)
    check_inputs(inputs, classes=self.classes)
    label = LabelEmbedding(self.classes, self.token_width, name="label")(inputs["label"])
    return label.astype(self.dtype)[:, None], None  # [B, 1, token_width]

  def layer(self, scale: int, attention: bool, name: str) -> nn.Module:
    heads = self.heads_at(scale) if attention else 0
    return remat(Layer, self.remat)(self.widths[scale], heads, self.groups, self.dtype, name=name)

  def heads_at(self, scale: int) -> int:
    width = self.widths[scale]
    if self.head_width and width % self.head_width:
      raise UserError(f"head_width={self.head_width} does not divide a width of {width}")
    return width // self.head_width if self.head_width else self.heads

  def conv(self, features: int, name: str, **init: nn.initializers.Initializer) -> nn.Conv:
    return nn.Conv(features, (3, 3), padding=1, dtype=self.dtype, name=name, **init)

  def halved(self, h: Array, name: str) -> Array:
    return Downsample(h.shape[-1], self.dtype, (1, 1), name=name)(h) if self.resample_conv else halve(h)

  def doubled(self, h: Array, name: str) -> Array:
    return Upsample(h.shape[-1], self.dtype, name=name)(h) if self.resample_conv else double(h)
