"""Normalisation with a two-pass variance.

A one-pass variance is wrong at means of 1000, which activations of published codecs reach.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError

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
      raise UserError(f"groups={self.groups} does not divide {channels} channels")
    scale = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
    bias = self.param("bias", nn.initializers.zeros_init(), (channels,), jnp.float32)
    x = x.astype(jnp.float32)
    mean = self.pooled(x.mean((1, 2)))  # [B, C]
    variance = self.pooled(jnp.square(x - mean[:, None, None]).mean((1, 2)))
    gain = scale * jax.lax.rsqrt(variance + self.epsilon)
    return ((x - mean[:, None, None]) * gain[:, None, None] + bias).astype(self.dtype)

  def pooled(self, each: Array) -> Array:
    """Per-channel means [B, C] -> means over each group, repeated to [B, C]."""
    means = each.reshape(len(each), self.groups, -1).mean(-1)  # [B, groups]
    return jnp.repeat(means, each.shape[-1] // self.groups, -1)


def layer_norm(x: Array, epsilon: float = 1e-6) -> Array:
  """x [..., C] with zero mean and unit variance over C, without parameters; in float32."""
  x = x.astype(jnp.float32)
  x = x - x.mean(-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)


def rms_norm(x: Array, epsilon: float = 1e-6) -> Array:
  """x [..., C] with unit mean square over C, without parameters; in float32.  Zhang & Sennrich 2019
  (1910.07467), eq. 4.
  """
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + epsilon)


class LayerNorm(nn.Module):
  """Layer norm, with a learned scale and bias if `affine`; computed in float32."""

  affine: bool = True
  epsilon: float = 1e-6
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [..., C] -> the same."""
    h = layer_norm(x, self.epsilon)
    if self.affine:
      scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:], jnp.float32)
      h = h * scale + self.param("bias", nn.initializers.zeros_init(), x.shape[-1:], jnp.float32)
    return h.astype(self.dtype)


class RMSNorm(nn.Module):
  """RMS norm with a learned scale and, with `use_bias`, a bias; computed in float32."""

  epsilon: float = 1e-6
  dtype: str = "float32"
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [..., C] -> the same."""
    scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:], jnp.float32)
    h = rms_norm(x, self.epsilon) * scale
    if self.use_bias:
      h = h + self.param("bias", nn.initializers.zeros_init(), x.shape[-1:], jnp.float32)
    return h.astype(self.dtype)


class FrozenBatchNorm(nn.Module):
  """Batch norm by a fixed mean and variance, which are parameters without a gradient.

  Ioffe & Szegedy 2015 (1502.03167), algorithm 2.  A weight decay must leave "mean" and "variance" out.
  """

  epsilon: float = 1e-5
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [..., C] -> the same; computed in float32."""
    zeros, ones = nn.initializers.zeros_init(), nn.initializers.ones_init()
    part = lambda name, init: self.param(name, init, x.shape[-1:], jnp.float32)
    mean, variance = (jax.lax.stop_gradient(part(*pair)) for pair in (("mean", zeros), ("variance", ones)))
    h = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(variance + self.epsilon)
    return (h * part("scale", ones) + part("bias", zeros)).astype(self.dtype)
