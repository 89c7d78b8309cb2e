"""Multi-layer perceptrons and their activations."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.nn.dense import Dense

Array = jax.Array


def gelu(x: Array) -> Array:
  return nn.gelu(x, approximate=False)


def gelu_tanh(x: Array) -> Array:
  return nn.gelu(x, approximate=True)


def quick_gelu(x: Array) -> Array:
  """x sigmoid(1.702 x), Hendrycks & Gimpel 2016 (1606.08415), section 2."""
  return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh, "quick_gelu": quick_gelu, "relu": nn.relu}


def activate(name: str, x: Array) -> Array:
  """An activation by its name in ACTIVATIONS; UserError for another name."""
  if name not in ACTIVATIONS:
    raise UserError(f"activation={name!r}; expected one of {list(ACTIVATIONS)}")
  return ACTIVATIONS[name](x)


def dense(features: int, dtype: str, name: str) -> Dense:
  return Dense(features, kernel_init=nn.initializers.xavier_uniform(), dtype=dtype, name=name)


def split_hidden(h: Array) -> Array:
  """[B, ..., hidden] -> the same, with axes that a mesh may split: samples and hidden channels."""
  return nn.with_logical_constraint(h, ("batch", *(["length"] * (h.ndim - 2)), "hidden"))


class Mlp(nn.Module):
  """Two dense layers around an activation: DiT's is a tanh-approximated GELU."""

  hidden: int
  dtype: str = "float32"
  activation: str = "gelu_tanh"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [..., C] -> [..., C]."""
    h = split_hidden(activate(self.activation, dense(self.hidden, self.dtype, "in")(x)))
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
