"""Attention to oneself and to others; its kernel is an argument."""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.nn.embedding import rotate
from jldm.nn.norm import RMSNorm

Array = jax.Array
Kernel = Callable[[Array, Array, Array], Array]


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


def split_heads(x: Array, heads: int) -> Array:
  """[B, L, C] -> [B, L, heads, C / heads].

  Raises:
    UserError: C is not divisible by `heads`.
  """
  if x.shape[-1] % heads:
    raise UserError(f"heads={heads} does not divide a width of {x.shape[-1]}")
  return x.reshape(*x.shape[:-1], heads, -1)


def by_heads(x: Array) -> Array:
  """[B, L, N, D], which a mesh may split by samples and by heads."""
  return nn.with_logical_constraint(x, ("batch", "length", "heads", "width"))


class SelfAttention(nn.Module):
  """Multi-head self-attention over tokens, Vaswani et al. 2017 (1706.03762), section 3.2.

  `qk_norm` normalises queries and keys by their root mean square, each head by itself (Dehghani et al. 2023,
  2302.05442, section 2.1), before rotary embeddings.
  """

  heads: int
  qk_norm: bool = False
  kernel: Kernel = attend
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, angles: Array | None = None) -> Array:
    """x [B, L, C], rotary angles [L, C / heads / 2] or None -> [B, L, C]."""
    init = nn.initializers.xavier_uniform()
    qkv = nn.Dense(3 * x.shape[-1], kernel_init=init, dtype=self.dtype, name="qkv")(x)
    q, k, v = (by_heads(split_heads(part, self.heads)) for part in jnp.split(qkv, 3, -1))  # [B, L, N, D]
    if self.qk_norm:
      q, k = (RMSNorm(dtype=self.dtype, name=f"norm_{name}")(part) for name, part in (("q", q), ("k", k)))
    if angles is not None:
      q, k = rotate(q, angles), rotate(k, angles)
    out = self.kernel(q, k, v).reshape(x.shape)
    return nn.Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="out")(out)


class CrossAttention(nn.Module):
  """Multi-head attention from tokens to others, queries, keys and values without bias: LDM (2112.10752), section 3.3."""

  heads: int
  kernel: Kernel = attend
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, context: Array) -> Array:
    """x [B, L, C], context [B, M, D] -> [B, L, C]."""
    dense = lambda name: nn.Dense(
      x.shape[-1], use_bias=name == "out", kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name
    )
    seen = {"q": x, "k": context, "v": context}
    q, k, v = (by_heads(split_heads(dense(name)(tokens), self.heads)) for name, tokens in seen.items())
    return dense("out")(self.kernel(q, k, v).reshape(x.shape))
