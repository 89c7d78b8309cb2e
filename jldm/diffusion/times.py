"""Where in time the training examples stand.

Every distribution is a map of the quantile u = (shift + row / B) mod 1: one uniform shift a step, then evenly spaced
strata, which lowers the variance of the loss (VDM, Kingma et al. 2021, 2107.00630, appendix I.1).
"""

import dataclasses

import jax

Array = jax.Array


def quantiles(key: Array, stratum: Array) -> Array:
  """Stratified uniform numbers in [0, 1): key [], stratum [B] = row / B of the global batch -> [B]."""
  return (jax.random.uniform(key) + stratum) % 1.0


@dataclasses.dataclass(frozen=True)
class Uniform:
  """t ~ U[0, 1), stratified."""

  def __call__(self, key: Array, stratum: Array) -> Array:
    """key [], stratum [B] -> t [B]."""
    return quantiles(key, stratum)


@dataclasses.dataclass(frozen=True)
class LogitNormal:
  """logit(t) ~ N(mean, std^2), stratified: Esser et al. 2024 (2403.03206), eq. 19."""

  mean: float = 0.0
  std: float = 1.0

  def __call__(self, key: Array, stratum: Array) -> Array:
    """key [], stratum [B] -> t [B]."""
    return jax.nn.sigmoid(self.mean + self.std * jax.scipy.special.ndtri(quantiles(key, stratum)))
