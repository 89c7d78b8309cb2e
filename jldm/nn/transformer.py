"""Transformer blocks that a condition modulates."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.nn.attention import SelfAttention
from jldm.nn.mlp import Mlp
from jldm.nn.norm import layer_norm

Array = jax.Array


class Modulation(nn.Module):
  """`parts` vectors of a width from a condition; zero at the start (adaLN-zero, DiT 2212.09748, section 3.2)."""

  parts: int
  width: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, condition: Array) -> list[Array]:
    """condition [B, D] -> `parts` arrays [B, 1, width]."""
    zeros = nn.initializers.zeros_init()
    out = nn.Dense(self.parts * self.width, kernel_init=zeros, dtype=self.dtype, name="dense")(nn.silu(condition))
    return jnp.split(out[:, None], self.parts, -1)


def modulated(x: Array, shift: Array, scale: Array) -> Array:
  """Layer norm of x [B, L, C], scaled by 1 + scale and shifted, both [B, 1, C]; in the dtype of the modulation."""
  return layer_norm(x).astype(scale.dtype) * (1 + scale) + shift


class ModulatedBlock(nn.Module):
  """Attention and MLP, each shifted, scaled and gated by the condition: DiT's block with adaLN-zero."""

  heads: int
  mlp_ratio: float = 4.0
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, condition: Array) -> Array:
    """x [B, L, C], condition [B, D] -> [B, L, C]."""
    width = x.shape[-1]
    mod = Modulation(6, width, self.dtype, name="modulation")(condition)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = mod
    attention = SelfAttention(self.heads, dtype=self.dtype, name="attention")
    x = x + gate_a * attention(modulated(x, shift_a, scale_a))
    mlp = Mlp(int(self.mlp_ratio * width), self.dtype, name="mlp")
    return x + gate_m * mlp(modulated(x, shift_m, scale_m))
