"""Multi-layer perceptrons."""

from flax import linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def dense(features: int, dtype: str, name: str) -> nn.Dense:
  return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform(), dtype=dtype, name=name)


def split_hidden(h: Array) -> Array:
  """[B, ..., hidden] -> the same, with axes that a mesh may split: samples and hidden channels."""
  return nn.with_logical_constraint(h, ("batch", *(["length"] * (h.ndim - 2)), "hidden"))


class Mlp(nn.Module):
  """Two dense layers around a tanh-approximated GELU, as the transformers of DiT have it."""

  hidden: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [..., C] -> [..., C]."""
    h = split_hidden(nn.gelu(dense(self.hidden, self.dtype, "in")(x), approximate=True))
    return dense(x.shape[-1], self.dtype, "out")(h)


class SwiGLU(nn.Module):
  """out(silu(gate) value), Shazeer 2020 (2002.05202), eq. 6.

  One dense layer gives the gate, then the value, as in LightningDiT.
  """

  hidden: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [..., C] -> [..., C]."""
    gate, value = jnp.split(dense(2 * self.hidden, self.dtype, "in")(x), 2, -1)
    return dense(x.shape[-1], self.dtype, "out")(split_hidden(nn.silu(gate) * value))


class GEGLU(nn.Module):
  """out(value gelu(gate)) with the exact GELU, 2002.05202, eq. 6.

  One dense layer gives the value, then the gate, as in Stable Diffusion.
  """

  hidden: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [..., C] -> [..., C]."""
    value, gate = jnp.split(dense(2 * self.hidden, self.dtype, "in")(x), 2, -1)
    return dense(x.shape[-1], self.dtype, "out")(split_hidden(value * nn.gelu(gate, approximate=False)))
