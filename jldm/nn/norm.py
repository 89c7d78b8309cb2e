"""Normalisation with two-pass variance: one pass loses a mean of 1000, and published codecs reach that."""

from flax import linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class GroupNorm(nn.Module):
  """Wu & He 2018 (1803.08494), from per-channel sums; epsilon as in the published codecs."""

  groups: int = 32
  epsilon: float = 1e-6
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, H, W, C] -> the same; statistics in float32 over H, W and the C / groups channels of a group."""
    channels = x.shape[-1]
    if channels % self.groups:
      raise ValueError(f"groups={self.groups} does not divide {channels} channels")
    scale = self.param("scale", nn.initializers.ones_init(), (channels,))
    bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
    x = x.astype(jnp.float32)
    mean = self.pooled(x.mean((1, 2)))  # [B, C]
    variance = self.pooled(jnp.square(x - mean[:, None, None]).mean((1, 2)))
    gain = scale * jax.lax.rsqrt(variance + self.epsilon)
    return ((x - mean[:, None, None]) * gain[:, None, None] + bias).astype(self.dtype)

  def pooled(self, each: Array) -> Array:
    """Per-channel means [B, C] -> means over each group, repeated to [B, C]."""
    means = each.reshape(len(each), self.groups, -1).mean(-1)
    return jnp.repeat(means, each.shape[-1] // self.groups, -1)


def layer_norm(x: Array, epsilon: float = 1e-6) -> Array:
  """x [..., C] with zero mean and unit variance over C, without parameters; in float32."""
  x = x.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)
