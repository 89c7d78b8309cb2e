"""Transformer blocks, conditioned by modulation, by further tokens, by cross-attention or joint attention."""

from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.nn.attention import CrossAttention, JointAttention, SelfAttention
from jldm.nn.dense import Dense
from jldm.nn.mlp import GEGLU, Mlp, SwiGLU
from jldm.nn.norm import GroupNorm, LayerNorm, RMSNorm

Array = jax.Array


def whole_width(x: Array) -> Array:
  """[B, L, C] -> the same: at the boundary of a block a mesh splits only samples."""
  return nn.with_logical_constraint(x, ("batch", "length", "width"))


class Modulation(nn.Module):
  """`parts` vectors from a condition, zero at initialisation: adaLN-zero, DiT (2212.09748), section 3.2."""

  parts: int
  width: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, condition: Array) -> list[Array]:
    """condition [B, D] -> `parts` arrays [B, 1, width]."""
    zeros = nn.initializers.zeros_init()
    dense = Dense(self.parts * self.width, kernel_init=zeros, dtype=self.dtype, name="dense")
    out = dense(nn.silu(condition))  # [B, parts width]
    return jnp.split(out[:, None], self.parts, -1)  # [B, 1, parts width] -> parts x [B, 1, width]


def modulated(x: Array, shift: Array, scale: Array) -> Array:
  """Normalised x [B, L, C], scaled by 1 + scale and shifted, both [B, 1, C]."""
  return x * (1 + scale) + shift


class Block(nn.Module):
  """The shared part of a block; a subclass defines how the condition enters attention and MLP.

  If there are tokens, every block attends to them between the two: PixArt-alpha, Chen et al. 2023
  (2310.00426), section 2.3.  The defaults are DiT's.  `rms_norm` and `swiglu` are LightningDiT's
  (2501.01423, section 4.3); `swiglu` has two thirds of the hidden width, for as many parameters.
  `mlp_epsilon` is of the norm before the MLP; diffusers' DiT has 1e-5.
  """

  heads: int = 6
  mlp_ratio: float = 4.0
  rms_norm: bool = False
  swiglu: bool = False
  qk_norm: bool = False
  mlp_epsilon: float = 1e-6
  dtype: str = "float32"

  modulates: ClassVar[bool]  # whether the block uses the condition vector
  joint: ClassVar[bool] = False  # whether it carries (x, tokens) from block to block, in place of x

  def norm(self, x: Array, name: str, epsilon: float = 1e-6) -> Array:
    return block_norm(self, name, epsilon)(x)

  def attend(self, x: Array, angles: Array | None) -> Array:
    return SelfAttention(self.heads, self.qk_norm, dtype=self.dtype, name="attention")(x, angles)

  def attend_to_tokens(self, x: Array, tokens: Array | None, mask: Array | None) -> Array:
    """x [B, L, C] plus its attention to tokens [B, M, D], zero at initialisation; x if there are none."""
    if tokens is None:
      return x
    norm = RMSNorm if self.rms_norm else LayerNorm
    attention = CrossAttention(self.heads, zero_init=True, dtype=self.dtype, name="cross_attention")
    return x + attention(norm(dtype=self.dtype, name="norm_cross")(x), tokens, mask)

  def feed(self, x: Array, name: str = "mlp") -> Array:
    hidden = int(self.mlp_ratio * x.shape[-1])
    if self.swiglu:
      return SwiGLU(int(2 / 3 * hidden), self.dtype, name=name)(x)
    return Mlp(hidden, self.dtype, name=name)(x)


def block_norm(block: Block, name: str, epsilon: float = 1e-6) -> nn.Module:
  """The norm within a block and after the last: RMS norm, or layer norm, affine if nothing modulates it."""
  if block.rms_norm:
    return RMSNorm(epsilon, block.dtype, name=name)
  return LayerNorm(not block.modulates, epsilon, block.dtype, name=name)


class ModulatedBlock(Block):
  """Attention and MLP, each shifted, scaled and gated by the condition: DiT's block with adaLN-zero."""

  modulates = True

  @nn.compact
  def __call__(
    self,
    x: Array,
    condition: Array,
    angles: Array | None = None,
    tokens: Array | None = None,
    mask: Array | None = None,
  ) -> Array:
    """x [B, L, C], condition [B, D], rotary angles [L, C / heads / 2], tokens [B, M, E], mask [B, M]
    -> [B, L, C].
    """
    mod = Modulation(6, x.shape[-1], self.dtype, name="modulation")(condition)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = mod
    x = x + gate_a * self.attend(modulated(self.norm(x, "norm1"), shift_a, scale_a), angles)
    x = self.attend_to_tokens(x, tokens, mask)
    return whole_width(
      x + gate_m * self.feed(modulated(self.norm(x, "norm2", self.mlp_epsilon), shift_m, scale_m))
    )


class PlainBlock(Block):
  """Attention and MLP after their norms, Dosovitskiy et al. 2021 (2010.11929), eq. 2 and 3.

  Conditions must be tokens.
  """

  modulates = False

  @nn.compact
  def __call__(
    self,
    x: Array,
    condition: Array,
    angles: Array | None = None,
    tokens: Array | None = None,
    mask: Array | None = None,
  ) -> Array:
    """Shapes as in `ModulatedBlock`; the condition vector is ignored."""
    del condition
    x = x + self.attend(self.norm(x, "norm1"), angles)
    x = self.attend_to_tokens(x, tokens, mask)
    return whole_width(x + self.feed(self.norm(x, "norm2", self.mlp_epsilon)))


class JointBlock(Block):
  """Two streams, latents and tokens, that meet in one attention: MMDiT, Esser et al. 2024 (2403.03206),
  figure 2.

  Either stream is shifted, scaled and gated by the condition, by layers of its own.  Those of the tokens end
  in "_tokens"; the others have the names of `ModulatedBlock`.
  """

  modulates = True
  joint = True

  @nn.compact
  def __call__(
    self,
    streams: tuple[Array, Array],
    condition: Array,
    angles: Array | None = None,
    tokens: None = None,
    mask: Array | None = None,
  ) -> tuple[Array, Array]:
    """streams x [B, L, C] and its tokens [B, M, C]; other shapes as in `ModulatedBlock` -> both.

    `tokens` are none besides those of the streams.
    """
    del tokens
    width, ends = streams[0].shape[-1], ("", "_tokens")
    modulation = lambda end: Modulation(6, width, self.dtype, name=f"modulation{end}")(condition)
    mods = [modulation(end) for end in ends]  # shift, scale and gate, of attention and of the MLP
    normed = [modulated(self.norm(x, f"norm1{end}"), *mod[:2]) for x, mod, end in zip(streams, mods, ends)]
    attention = JointAttention(self.heads, self.qk_norm, dtype=self.dtype, name="attention")
    attended = attention(*normed, angles, mask)
    made = []
    for x, out, mod, end in zip(streams, attended, mods, ends):
      x = x + mod[2] * out
      h = modulated(self.norm(x, f"norm2{end}", self.mlp_epsilon), *mod[3:5])
      made.append(whole_width(x + mod[5] * self.feed(h, f"mlp{end}")))
    return tuple(made)


class CrossBlock(nn.Module):
  """Self-attention, attention to a context, and an MLP: the block of Stable Diffusion's U-Net.

  LDM (2112.10752), section 3.3.
  """

  heads: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, context: Array, mask: Array | None = None) -> Array:
    """x [B, L, C], context [B, M, D], mask bool [B, M] -> [B, L, C]."""
    norm = lambda i: LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f"norm{i}")
    attention = lambda name: CrossAttention(self.heads, dtype=self.dtype, name=name)
    h = norm(1)(x)
    x = x + attention("self_attention")(h, h)
    x = x + attention("cross_attention")(norm(2)(x), context, mask)
    return whole_width(x + GEGLU(4 * x.shape[-1], self.dtype, name="mlp")(norm(3)(x)))


class SpatialTransformer(nn.Module):
  """CrossBlocks on the places of an image, added to the image: LDM (2112.10752), section 3.3.

  It is the identity at initialisation.  More than one layer is a scan, whose parameters are stacked.
  """

  heads: int
  groups: int = 32
  dtype: str = "float32"
  layers: int = 1

  @nn.compact
  def __call__(self, x: Array, context: Array, mask: Array | None = None) -> Array:
    """x [B, H, W, C], context [B, M, D], mask bool [B, M] -> [B, H, W, C]."""
    b, h, w, channels = x.shape
    places = GroupNorm(self.groups, dtype=self.dtype, name="norm")(x)
    places = places.reshape(b, h * w, channels)  # [B, H W, C]
    places = Dense(channels, dtype=self.dtype, name="in")(places)
    places = self.blocks(places, context, mask)  # [B, H W, C]
    zeros = nn.initializers.zeros_init()
    places = Dense(channels, kernel_init=zeros, dtype=self.dtype, name="out")(places)
    return x + places.reshape(x.shape)  # [B, H, W, C]

  def blocks(self, places: Array, context: Array, mask: Array | None) -> Array:
    if self.layers == 1:
      return CrossBlock(self.heads, self.dtype, name="block")(places, context, mask)
    scanned = nn.scan(
      lambda block, places, context, mask: (block(places, context, mask), None),
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True},
      in_axes=(nn.broadcast,) * 2,
      length=self.layers,
      metadata_params={nn.PARTITION_NAME: None},
    )
    return scanned(CrossBlock(self.heads, self.dtype, name="blocks"), places, context, mask)[0]
