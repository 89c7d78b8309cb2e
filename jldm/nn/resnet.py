"""Residual blocks of convolutional networks."""

from flax import linen as nn
import jax

from jldm.nn.attention import Kernel, SelfAttention, attend
from jldm.nn.dense import Dense
from jldm.nn.norm import GroupNorm

Array = jax.Array


class ResnetBlock(nn.Module):
  """Norm, SiLU and a 3x3 convolution, twice, added to the input.

  If the number of channels changes, a 1x1 convolution adapts the input.  An embedding is added between
  the two convolutions, one number per channel.
  """

  features: int
  groups: int = 32
  dtype: str = "float32"
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Array, embedding: Array | None = None) -> Array:
    """x [B, H, W, C], embedding [B, D] or None -> [B, H, W, features]."""
    norm = lambda i, h: GroupNorm(self.groups, self.epsilon, self.dtype, name=f"norm{i}")(h)
    conv = lambda i, h: nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, name=f"conv{i}")(h)
    h = conv(1, nn.silu(norm(1, x)))
    if embedding is not None:
      h = h + Dense(self.features, dtype=self.dtype, name="embedding")(nn.silu(embedding))[:, None, None]
    h = nn.with_logical_constraint(h, ("batch", "rows", "columns", "hidden"))
    h = conv(2, nn.silu(norm(2, h)))
    if x.shape[-1] != self.features:
      x = nn.Conv(self.features, (1, 1), dtype=self.dtype, name="shortcut")(x)
    return nn.with_logical_constraint(x + h, ("batch", "rows", "columns", "channels"))


class ImageAttention(nn.Module):
  """Self-attention over all places of an image, with a norm before it, added to the input."""

  heads: int = 1
  groups: int = 32
  dtype: str = "float32"
  epsilon: float = 1e-6
  kernel: Kernel = attend

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> [B, H, W, C]."""
    h = GroupNorm(self.groups, self.epsilon, self.dtype, name="norm")(x)
    h = h.reshape(len(x), -1, x.shape[-1])  # [B, H W, C]
    h = SelfAttention(self.heads, kernel=self.kernel, dtype=self.dtype, name="attention")(h)
    return x + h.reshape(x.shape)  # [B, H, W, C]
