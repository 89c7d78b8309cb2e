"""One attention; its kernel is an argument."""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


def late_normalised(q: Array, k: Array, v: Array) -> Array:
  """softmax(q k^T / sqrt(D)) v, divided by the sum after the value product: half the time of the fused one on a CPU.

  q [B, L, N, D], k and v [B, M, N, D] -> [B, L, N, D]; logits and sums in float32.
  """
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # [B, N, L, D]
  logits = jnp.einsum("bnld,bnmd->bnlm", q, k, preferred_element_type=jnp.float32)
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
  out = jnp.einsum("bnlm,bnmd->bnld", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
  return jnp.swapaxes((out / weights.sum(-1, keepdims=True)).astype(v.dtype), 1, 2)


def attend(q: Array, k: Array, v: Array) -> Array:
  """The fastest exact attention of the platform that the program is compiled for; shapes as in `late_normalised`."""
  return jax.lax.platform_dependent(q, k, v, cpu=late_normalised, default=jax.nn.dot_product_attention)


class SelfAttention(nn.Module):
  """Multi-head self-attention over tokens, Vaswani et al. 2017 (1706.03762), section 3.2."""

  heads: int
  kernel: Callable[[Array, Array, Array], Array] = attend
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, L, C] -> [B, L, C]."""
    width = x.shape[-1]
    init = nn.initializers.xavier_uniform()
    qkv = nn.Dense(3 * width, kernel_init=init, dtype=self.dtype, name="qkv")(x)
    q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * self.heads, width // self.heads), 3, 2)  # [B, L, N, D]
    out = self.kernel(q, k, v).reshape(x.shape)
    return nn.Dense(width, kernel_init=init, dtype=self.dtype, name="out")(out)
