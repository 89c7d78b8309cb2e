"""Attention of tokens to themselves and to other tokens; the kernel is an argument.

A mask is bool, True where a key may be attended to: [B, M], or any shape that broadcasts to [B,
heads, L, M].  A query whose keys are all masked attends to nothing and gets zeros.
"""

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.nn.dense import Dense
from jldm.nn.embedding import rotate
from jldm.nn.norm import RMSNorm

Array = jax.Array
Kernel = Callable[..., Array]  # (q [B, L, N, D], k [B, M, N, D], v [B, M, N, D], mask=None) -> [B, L, N, D]


def late_normalised(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
  """softmax(q k^T / sqrt(D)) v, divided by the sum after the product with v.

  On a CPU it takes half the time of `fused`.  q [B, L, N, D], k and v [B, M, N, D] -> [B, L, N, D];
  logits and sums are float32.
  """
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))  # [B, N, L or M, D]
  logits = jnp.einsum("bnld,bnmd->bnlm", q, k, preferred_element_type=jnp.float32)
  if mask is not None:
    mask = expand_mask(mask)
    logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
  weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))  # [B, N, L, M]
  if mask is not None:
    weights = jnp.where(mask, weights, 0)
  out = jnp.einsum("bnlm,bnmd->bnld", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
  total = weights.sum(-1, keepdims=True)  # [B, N, L, 1]
  if mask is not None:
    total = jnp.where(total == 0, 1, total)
  return jnp.swapaxes((out / total).astype(v.dtype), 1, 2)  # [B, L, N, D]


def fused(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
  """jax.nn.dot_product_attention; shapes as in `late_normalised`."""
  if mask is None:
    return jax.nn.dot_product_attention(q, k, v)
  mask = expand_mask(mask)
  any_key = jnp.swapaxes(mask.any(-1, keepdims=True), 1, 2)  # [B, L or 1, N or 1, 1]
  return jnp.where(any_key, jax.nn.dot_product_attention(q, k, v, mask=mask), 0)


def attend(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
  """The fastest exact attention on the platform of the compiled program; shapes as in `late_normalised`."""
  arrays = (q, k, v) if mask is None else (q, k, v, mask)
  return jax.lax.platform_dependent(*arrays, cpu=late_normalised, default=fused)


def expand_mask(mask: Array) -> Array:
  """bool [B, M] -> [B, 1, 1, M]; four axes stay.

  Raises:
    UserError: the mask is not bool, or has another number of axes.
  """
  if mask.dtype != bool or mask.ndim not in (2, 4):
    raise UserError(f"a mask {mask.dtype}{list(mask.shape)}; expected bool [B, M] or [B, 1, L, M]")
  return mask[:, None, None] if mask.ndim == 2 else mask


def split_heads(x: Array, heads: int) -> Array:
  """[B, L, C] -> [B, L, heads, C / heads].

  Raises:
    UserError: C is not divisible by `heads`.
  """
  if x.shape[-1] % heads:
    raise UserError(f"heads={heads} does not divide a width of {x.shape[-1]}")
  return x.reshape(*x.shape[:-1], heads, -1)  # [B, L, heads, C / heads]


def by_heads(x: Array) -> Array:
  """[B, L, N, D] -> the same, with axes that a mesh may split: samples and heads."""
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
  def __call__(self, x: Array, angles: Array | None = None, mask: Array | None = None) -> Array:
    """x [B, L, C], rotary angles [L, C / heads / 2], mask bool [B, L] or [B, 1, L, L] -> [B, L, C]."""
    init = nn.initializers.xavier_uniform()
    qkv = Dense(3 * x.shape[-1], kernel_init=init, dtype=self.dtype, name="qkv")(x)  # [B, L, 3 C]
    q, k, v = (by_heads(split_heads(part, self.heads)) for part in jnp.split(qkv, 3, -1))  # [B, L, N, D]
    if self.qk_norm:
      q, k = (RMSNorm(dtype=self.dtype, name=f"norm_{name}")(part) for name, part in (("q", q), ("k", k)))
    if angles is not None:
      q, k = rotate(q, angles), rotate(k, angles)
    out = self.kernel(q, k, v, mask).reshape(x.shape)  # [B, L, N D]
    return Dense(x.shape[-1], kernel_init=init, dtype=self.dtype, name="out")(out)


class JointAttention(nn.Module):
  """Multi-head self-attention over two streams at once, each with its own layers.

  MMDiT, Esser et al. 2024 (2403.03206), figure 2: queries, keys and values of both are concatenated.  The
  layers of the first stream are named as in `SelfAttention`, those of the second end in "_tokens".
  """

  heads: int
  qk_norm: bool = False
  kernel: Kernel = attend
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, x: Array, tokens: Array, angles: Array | None = None, mask: Array | None = None
  ) -> tuple[Array, Array]:
    """x [B, L, C], tokens [B, M, C], rotary angles of x [L, C / heads / 2], mask of tokens bool [B, M]
    -> [B, L, C], [B, M, C].
    """
    init, length = nn.initializers.xavier_uniform(), x.shape[1]
    dense = lambda features, name: Dense(features, kernel_init=init, dtype=self.dtype, name=name)
    one, other = self.parts(dense, x, ""), self.parts(dense, tokens, "_tokens")
    if angles is not None:
      one = [rotate(one[0], angles), rotate(one[1], angles), one[2]]
    if mask is not None:
      mask = jnp.concatenate([jnp.ones(x.shape[:2], bool), mask], 1)  # [B, L + M]
    q, k, v = (jnp.concatenate(pair, 1) for pair in zip(one, other))  # [B, L + M, N, D]
    out = self.kernel(q, k, v, mask).reshape(len(x), -1, x.shape[-1])  # [B, L + M, N D]
    return dense(x.shape[-1], "out")(out[:, :length]), dense(x.shape[-1], "out_tokens")(out[:, length:])

  def parts(self, dense: Callable[..., Dense], x: Array, ending: str) -> list[Array]:
    """Queries, keys and values of a stream [B, L, C], [B, L, N, D] each."""
    qkv = jnp.split(dense(3 * x.shape[-1], f"qkv{ending}")(x), 3, -1)  # [B, L, C] each
    q, k, v = (by_heads(split_heads(part, self.heads)) for part in qkv)  # [B, L, N, D]
    if self.qk_norm:
      q, k = (RMSNorm(dtype=self.dtype, name=f"norm_{n}{ending}")(part) for n, part in (("q", q), ("k", k)))
    return [q, k, v]


class CrossAttention(nn.Module):
  """Multi-head attention from tokens to other tokens: LDM (2112.10752), section 3.3.

  Queries, keys and values have no bias.  With `zero_init` the output starts at zero.
  """

  heads: int
  kernel: Kernel = attend
  zero_init: bool = False
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array, context: Array, mask: Array | None = None) -> Array:
    """x [B, L, C], context [B, M, D], mask bool [B, M] or [B, 1, L, M] -> [B, L, C]."""
    init = nn.initializers.xavier_uniform()
    parts = []
    for name, tokens in (("q", x), ("k", context), ("v", context)):
      part = Dense(x.shape[-1], use_bias=False, kernel_init=init, dtype=self.dtype, name=name)(tokens)
      parts.append(by_heads(split_heads(part, self.heads)))  # [B, L or M, N, D]
    out = self.kernel(*parts, mask).reshape(x.shape)  # [B, L, N D]
    out_init = nn.initializers.zeros_init() if self.zero_init else init
    return Dense(x.shape[-1], kernel_init=out_init, dtype=self.dtype, name="out")(out)
