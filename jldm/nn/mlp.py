"""Multi-layer perceptrons."""

from flax import linen as nn
import jax

Array = jax.Array


class Mlp(nn.Module):
  """Two dense layers around a tanh-approximated GELU, as the transformers of DiT have it."""

  hidden: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x [..., C] -> [..., C]."""
    dense = lambda features, name: nn.Dense(
      features, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name
    )
    return dense(x.shape[-1], "out")(nn.gelu(dense(self.hidden, "in")(x), approximate=True))
