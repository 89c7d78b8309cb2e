"""A class label as a vector."""

from flax import linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


class LabelEmbedding(nn.Module):
  """One vector a class and one for the unknown class, -1."""

  classes: int
  width: int

  @nn.compact
  def __call__(self, labels: Array) -> Array:
    """labels int [B] in -1 .. classes - 1 -> [B, width]."""
    table = self.param("table", nn.initializers.normal(0.02), (self.classes + 1, self.width))
    return jnp.take(table, jnp.where(labels < 0, self.classes, labels), axis=0)
