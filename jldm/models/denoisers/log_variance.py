"""The log-variance of a denoiser's error as a function of the noise level, for the weight of its loss."""

from flax import linen as nn
import jax

from jldm.nn.dense import Dense
from jldm.nn.embedding import sinusoids

Array = jax.Array


class LogVariance(nn.Module):
  """u of Karras et al. 2024 (2312.02696), eq. 21: a dense layer on sinusoids of the noise level.

  It is zero at initialisation, and float32.
  """

  frequencies: int = 128

  @nn.compact
  def __call__(self, noise_level: Array) -> Array:
    """noise_level [B] -> [B]."""
    zeros = nn.initializers.zeros_init()
    return Dense(1, kernel_init=zeros, name="dense")(sinusoids(1000 * noise_level, self.frequencies))[:, 0]
