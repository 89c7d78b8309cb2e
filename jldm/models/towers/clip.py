"""The text transformer of CLIP, Radford et al. 2021 (2103.00020), section 2.4, and of OpenCLIP."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.models.towers.tower import Encoded
from jldm.nn.attention import SelfAttention
from jldm.nn.dense import Dense
from jldm.nn.mlp import Mlp
from jldm.nn.norm import LayerNorm

Array = jax.Array


class CLIPBlock(nn.Module):
  """Causal attention and MLP after their norms."""

  heads: int
  hidden: int
  activation: str
  epsilon: float
  dtype: str

  @nn.compact
  def __call__(self, x: Array, mask: Array) -> Array:
    """x [B, L, C], mask bool [1, 1, L, L] -> [B, L, C]."""
    norm = lambda name: LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)
    attention = SelfAttention(self.heads, dtype=self.dtype, name="attention")
    x = x + attention(norm("norm1")(x), mask=mask)
    return x + Mlp(self.hidden, self.dtype, self.activation, name="mlp")(norm("norm2")(x))


class CLIPText(nn.Module):
  """A causal transformer over the ids of a text; the defaults are those of CLIP ViT-L/14.

  activation: "quick_gelu" for OpenAI's weights, "gelu" for OpenCLIP's.
  skip: `tokens` are the states before the last `skip` blocks; 0 is after all of them.
  final_norm: whether `tokens` pass the last norm.  Stable Diffusion XL has skip=1 and no final norm.
  projection: the width of `pooled`, a linear map of the state at the end token after all blocks and the
    last norm; 0 is that state itself.
  end_token: the id whose first place is pooled; 0 is the place of the greatest id, CLIP's original rule.
  """

  vocabulary: int = 49408
  length: int = 77
  width: int = 768
  depth: int = 12
  heads: int = 12
  hidden: int = 3072
  activation: str = "quick_gelu"
  skip: int = 0
  final_norm: bool = True
  projection: int = 0
  end_token: int = 49407
  epsilon: float = 1e-5
  dtype: str = "float32"

  @nn.compact
  def __call__(self, ids: Array, mask: Array | None = None) -> Encoded:
    """ids int [B, L] -> tokens [B, L, width] and pooled [B, projection or width].

    A mask of padding changes nothing: attention is causal, and padding comes last.

    Raises:
      UserError: more ids than `length`, or as many blocks to skip as there are.
    """
    del mask
    length = ids.shape[1]
    if length > self.length:
      raise UserError(f"ids [B, {length}]; expected at most length={self.length} per text")
    if self.skip >= self.depth:
      raise UserError(f"skip={self.skip}; expected 0 to {self.depth - 1} of {self.depth} blocks")
    init = nn.initializers.normal(0.02)
    x = nn.Embed(self.vocabulary, self.width, embedding_init=init, dtype=self.dtype, name="tokens")(ids)
    places = self.param("places", nn.initializers.normal(0.01), (self.length, self.width), jnp.float32)
    x = x + places[:length].astype(self.dtype)  # [B, L, width]
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]  # [1, 1, L, L]
    states = []
    for i in range(self.depth):
      block = CLIPBlock(self.heads, self.hidden, self.activation, self.epsilon, self.dtype, name=f"block{i}")
      x = block(x, causal)
      states.append(x)
    norm = LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")
    tokens, last = states[-1 - self.skip], norm(x)
    pooled = last[jnp.arange(len(ids)), self.end_places(ids)]  # [B, width]
    if self.projection:
      pooled = Dense(self.projection, use_bias=False, dtype=self.dtype, name="projection")(pooled)
    tokens = norm(tokens) if self.final_norm else tokens
    return Encoded(tokens.astype(jnp.float32), pooled.astype(jnp.float32))

  def end_places(self, ids: Array) -> Array:
    """The place of the end token in ids [B, L], [B]."""
    return jnp.argmax(ids == self.end_token if self.end_token else ids, -1)
