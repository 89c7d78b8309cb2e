"""What an encoder returns: a diagonal Gaussian, Kingma & Welling 2014 (1312.6114), or a point; and
what its bottleneck costs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jldm.core.errors import UserError
from jldm.core.keys import fold_each, normal_like

Array = jax.Array

FLOOR, CEILING = -30.0, 20.0  # of log-variances; at the floor the Gaussian is a point


class Gaussian(NamedTuple):
  """q(z | x) = N(mean, exp(log_variance)), both [B, h, w, C]."""

  mean: Array
  log_variance: Array

  def sample(self, keys: Array) -> Array:
    """z [B, h, w, C]; row b from keys[b] alone.

    Raises:
      UserError: not one key per row.
    """
    size, typed = len(self.mean), jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if keys.shape[: keys.ndim if typed else -1] != (size,):
      raise UserError(
        f"keys of shape {list(keys.shape)} for a batch of {size}; expected one per row: "
        f"jax.random.split(key, {size})"
      )
    return self.mean + jnp.exp(0.5 * self.log_variance) * normal_like(keys, self.mean)

  def kl(self) -> Array:
    """KL to N(0, I) in nats a sample [B] (appendix B there)."""
    each = jnp.square(self.mean) + jnp.exp(self.log_variance) - 1 - self.log_variance
    return 0.5 * each.sum(tuple(range(1, each.ndim)))


def point(z: Array) -> Gaussian:
  """The Gaussian at the floor around z [B, h, w, C]."""
  return Gaussian(z, jnp.full_like(z, FLOOR))


class Point(NamedTuple):
  """A latent without noise, mean [B, ..., C]."""

  mean: Array

  def sample(self, keys: Array) -> Array:
    """The mean; keys [B] are not used."""
    del keys
    return self.mean


Posterior = Gaussian | Point
SEPARATOR = "__"  # between a part and its moment


def is_posterior(value: Any) -> bool:
  return isinstance(value, Posterior)


def sample_posterior(posterior: Any, keys: Array) -> Any:
  """Raw latents of a posterior, or of a dict of them by part, each with different keys; keys [B]."""
  if is_posterior(posterior):
    return posterior.sample(keys)
  return {name: part.sample(fold_each(keys, i)) for i, (name, part) in enumerate(sorted(posterior.items()))}


def posterior_moments(posterior: Any) -> dict[str, Array]:
  """The arrays of a posterior by name, "mean" and "log_variance", or "image__mean" of the part "image"
  of a dict of them.
  """
  if is_posterior(posterior):
    return posterior._asdict()
  return {
    f"{name}{SEPARATOR}{key}": value
    for name, part in posterior.items()
    for key, value in part._asdict().items()
  }


def posterior_of(batch: dict) -> Any:
  """The inverse of `posterior_moments`, of a batch that has other arrays too."""
  if "mean" in batch:
    return Gaussian(batch["mean"], batch["log_variance"]) if "log_variance" in batch else Point(batch["mean"])
  names = [name.removesuffix(f"{SEPARATOR}mean") for name in batch if name.endswith(f"{SEPARATOR}mean")]
  part = lambda name: {
    key: batch[f"{name}{SEPARATOR}{key}"] for key in Gaussian._fields if f"{name}{SEPARATOR}{key}" in batch
  }
  return {name: posterior_of(part(name)) for name in names}


class Bottleneck(NamedTuple):
  """What it costs to pass a bottleneck.

  costs: by name, [B], to be weighted.  metrics: scalars.  extra: the network's collections besides
  its parameters, after this batch.
  """

  costs: dict[str, Array]
  metrics: dict[str, Array]
  extra: Any
