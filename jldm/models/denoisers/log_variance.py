"""The uncertainty of a denoiser as a function of the level, for the weight of its loss."""

from flax import linen as nn
import jax

from jldm.nn.embedding import sinusoids

Array = jax.Array


class LogVariance(nn.Module):
  """u of Karras et al. 2024 (2312.02696), eq. 21: one dense layer on sinusoids of the level; zero at the start, in float32."""

  frequencies: int = 128

  @nn.compact
  def __call__(self, level: Array) -> Array:
    """level [B] -> [B, 1, 1, 1]."""
    zeros = nn.initializers.zeros_init()
    return nn.Dense(1, kernel_init=zeros, name="dense")(sinusoids(1000 * level, self.frequencies))[:, None, None]
