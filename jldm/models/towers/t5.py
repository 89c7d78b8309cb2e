"""The encoder of T5, Raffel et al. 2020 (1910.10683), section 2.1, and of T5 v1.1."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jldm.models.towers.tower import Encoded
from jldm.nn.dense import Dense
from jldm.nn.mlp import activate, split_hidden
from jldm.nn.norm import RMSNorm

Array = jax.Array


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
  """The bucket of the way from each place to each other one, int [L, L]; row: from, column: to.

  Half of the buckets are for each direction; of these half are for one distance each, and the others grow
  with the logarithm up to `max_distance`.
  """
  way = np.arange(length)[None] - np.arange(length)[:, None]
  half, distance = buckets // 2, np.abs(way)
  exact = half // 2
  logarithm = np.log(np.maximum(distance, 1).astype(np.float32) / exact)
  growing = exact + (logarithm / np.float32(math.log(max_distance / exact)) * (half - exact)).astype(int)
  return half * (way > 0) + np.where(distance < exact, distance, np.minimum(growing, half - 1))


class T5Attention(nn.Module):
  """Self-attention without biases; logits are not divided by the root of the heads' width."""

  heads: int
  head_width: int
  dtype: str

  @nn.compact
  def __call__(self, x: Array, bias: Array) -> Array:
    """x [B, L, C], bias float32 [1 or B, heads, L, L] on the logits -> [B, L, C]."""
    dense = lambda features, name: Dense(features, use_bias=False, dtype=self.dtype, name=name)
    each = (dense(self.heads * self.head_width, name)(x) for name in "qkv")
    q, k, v = (part.reshape(*x.shape[:2], self.heads, self.head_width) for part in each)  # [B, L, N, D]
    logits = jnp.einsum("blnd,bmnd->bnlm", q, k, preferred_element_type=jnp.float32) + bias
    weights = nn.softmax(logits).astype(v.dtype)  # [B, N, L, M]
    out = jnp.einsum("bnlm,bmnd->blnd", weights, v)
    return dense(x.shape[-1], "out")(out.reshape(*x.shape[:2], -1))


class T5Mlp(nn.Module):
  """Two dense layers without biases; if `gated`, a third is activated and multiplies the hidden channels
  (2002.05202, eq. 6).
  """

  hidden: int
  activation: str
  gated: bool
  dtype: str

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [B, L, C] -> [B, L, C]."""
    dense = lambda features, name: Dense(features, use_bias=False, dtype=self.dtype, name=name)
    h = split_hidden(dense(self.hidden, "in")(x))
    if self.gated:
      h = activate(self.activation, split_hidden(dense(self.hidden, "gate")(x))) * h
    else:
      h = activate(self.activation, h)
    return dense(x.shape[-1], "out")(h)


class T5Block(nn.Module):
  """Attention and MLP after their norms; the sum of them stays in float32, where large values are exact."""

  heads: int
  head_width: int
  hidden: int
  activation: str
  gated: bool
  epsilon: float
  dtype: str

  @nn.compact
  def __call__(self, x: Array, bias: Array) -> Array:
    """x float32 [B, L, C], bias [1 or B, heads, L, L] -> [B, L, C]."""
    norm = lambda name: RMSNorm(self.epsilon, self.dtype, name=name)
    attention = T5Attention(self.heads, self.head_width, self.dtype, name="attention")
    x = x + attention(norm("norm1")(x), bias).astype(jnp.float32)
    mlp = T5Mlp(self.hidden, self.activation, self.gated, self.dtype, name="mlp")
    return x + mlp(norm("norm2")(x)).astype(jnp.float32)


class T5Encoder(nn.Module):
  """A transformer over the ids of a text; the defaults are those of t5-small.

  head_width: of queries, keys and values; heads of them need not add up to `width`.
  gated, activation: T5 v1.1 has a gate and "gelu_tanh".
  buckets, max_distance: of relative positions.  All blocks share one table of biases.
  """

  vocabulary: int = 32128
  width: int = 512
  depth: int = 6
  heads: int = 8
  head_width: int = 64
  hidden: int = 2048
  gated: bool = False
  activation: str = "relu"
  buckets: int = 32
  max_distance: int = 128
  epsilon: float = 1e-6
  dtype: str = "float32"

  @nn.compact
  def __call__(self, ids: Array, mask: Array | None = None) -> Encoded:
    """ids int [B, L], mask bool [B, L], True where a token may be attended to -> tokens [B, L, width]."""
    length = ids.shape[1]
    init = nn.initializers.normal(1.0)
    x = nn.Embed(self.vocabulary, self.width, embedding_init=init, name="tokens")(ids)  # [B, L, width]
    table = self.param("relative", nn.initializers.normal(0.02), (self.buckets, self.heads), jnp.float32)
    bias = table.astype(jnp.float32)[relative_buckets(length, self.buckets, self.max_distance)]
    bias = bias.transpose(2, 0, 1)[None]  # [L, L, heads] -> [1, heads, L, L]
    if mask is not None:
      bias = jnp.where(mask[:, None, None], bias, jnp.finfo(jnp.float32).min)  # [B, heads, L, L]
    for i in range(self.depth):
      block = T5Block(
        self.heads,
        self.head_width,
        self.hidden,
        self.activation,
        self.gated,
        self.epsilon,
        self.dtype,
        name=f"block{i}",
      )
      x = block(x.astype(jnp.float32), bias)
    return Encoded(RMSNorm(self.epsilon, name="norm")(x))
