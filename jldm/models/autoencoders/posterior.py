"""The diagonal Gaussian that an encoder gives, Kingma & Welling 2014 (1312.6114), and what the bottleneck tells of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jldm.core.keys import normal

Array = jax.Array

FLOOR, CEILING = -30.0, 20.0  # of log-variances; at the floor the Gaussian is a point


class Gaussian(NamedTuple):
  """q(z | x) = N(mean, exp(log_variance)), both [B, h, w, C]."""

  mean: Array
  log_variance: Array

  def sample(self, keys: Array) -> Array:
    """z [B, h, w, C]; row b from keys[b] alone."""
    return self.mean + jnp.exp(0.5 * self.log_variance) * normal(keys, self.mean)

  def kl(self) -> Array:
    """KL to N(0, I) in nats a sample [B] (appendix B there)."""
    each = jnp.square(self.mean) + jnp.exp(self.log_variance) - 1 - self.log_variance
    return 0.5 * each.sum(tuple(range(1, each.ndim)))


def point(z: Array) -> Gaussian:
  """The Gaussian at the floor around z [B, h, w, C]."""
  return Gaussian(z, jnp.full_like(z, FLOOR))


class Bottleneck(NamedTuple):
  """What it costs to pass a bottleneck.

  costs: by name, [B], to be weighted.  metrics: scalars.  extra: the network's collections besides its parameters,
  after this batch.
  """

  costs: dict[str, Array]
  metrics: dict[str, Array]
  extra: Any
