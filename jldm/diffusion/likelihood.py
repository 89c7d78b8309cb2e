"""The log density of data under a denoiser, in nats of the space that it works in.

The probability flow and its density, Song et al. 2021 (2011.13456), eq. 39:

  (1)  dz / dt = v(z, t) = d_alpha x0 + d_sigma eps
  (2)  log p(z_low) = log N(z_high; 0, (alpha_high^2 + sigma_high^2) I) + integral of div v(z_t, t)
       over t from low to high

The variational bound over a chain of times, Ho et al. 2020 (2006.11239), eq. 5, in the terms of
Kingma et al. 2021 (2107.00630), eq. 11 to 13, with the ancestral variance that q(z_s | z_t, x0)
has:

  (3)  -log p(x0) <= KL(q(z_high | x0) || N(0, (alpha^2 + sigma^2) I)) + sum over (s, t) of KL_st +
       reconstruction
  (4)  KL_st = (SNR_s - SNR_t) / 2 E|x0 - x0(z_t)|^2
  (5)  reconstruction = E[-log N(x0; z_low / alpha, sigma^2 / alpha^2 I)] = D / 2 log(2 pi e sigma^2
       / alpha^2) at the lowest time

For a denoiser of latents both are densities of latents: bits per latent value, not the bits per
pixel of the image literature.  Times ascend.  The lowest is above 0, so that data has some noise and
(2) and (5) are finite.
"""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jldm.core.keys import fold_each, normal_like, split_each
from jldm.core.shapes import expand
from jldm.diffusion.process import Process, rates
from jldm.diffusion.target import Denoised

Array = jax.Array
Denoise = Callable[[Array, Array], Denoised]  # (z [B, ...], t [] or [B])
# (v, z [B, ...]) -> v(z) [B, ...], div v [B]
Divergence = Callable[[Callable[[Array], Array], Array], tuple[Array, Array]]


def sum_per_sample(e: Array) -> Array:
  """[B, ...] -> [B]."""
  return jnp.sum(e, tuple(range(1, e.ndim)))


def exact_divergence(v: Callable[[Array], Array], z: Array) -> tuple[Array, Array]:
  """The divergence by one derivative per dimension, all at once: for few dimensions."""
  units = jnp.eye(z[0].size, dtype=z.dtype).reshape((-1, 1) + z.shape[1:])
  velocity, push = jax.linearize(v, z)
  return velocity, jnp.sum(
    jax.vmap(lambda unit: sum_per_sample(push(jnp.broadcast_to(unit, z.shape)) * unit))(units), 0
  )


def hutchinson(keys: Array, like: Array, probes: int = 1, gaussian: bool = False) -> Divergence:
  """The divergence as the mean of e^T dv/dz e over random e of unit covariance: Song et al. 2021, eq. 40.

  Unbiased, whatever the dimension; keys [B].  The probes, of signs or Gaussian, are drawn once, in
  the shape of `like` [B, ...], and stay the same along a path.
  """
  kind = jax.random.normal if gaussian else jax.random.rademacher
  drawn = jax.vmap(lambda key: kind(key, (probes,) + like.shape[1:], like.dtype))(keys)

  def divergence(v: Callable[[Array], Array], z: Array) -> tuple[Array, Array]:
    velocity, push = jax.linearize(v, z)
    return velocity, jnp.mean(jax.vmap(lambda e: sum_per_sample(push(e) * e))(jnp.moveaxis(drawn, 1, 0)), 0)

  return divergence


def log_density(process: Process, denoise: Denoise, z: Array, times: Array, divergence: Divergence) -> Array:
  """log p(z_low) [B] of z [B, ...] at times[0], by (2) with a classical Runge-Kutta step in each
  interval of `times` [N + 1].

  `divergence` is `exact_divergence` or a `hutchinson`.  If the rates are smooth, the error is of
  fourth order in the steps, plus the error of the prior at times[-1].
  """

  def slope(z: Array, t: Array) -> tuple[Array, Array]:
    def v(z: Array) -> Array:
      denoised, r = denoise(z, t), rates(process, t, z)
      return r.d_alpha * denoised.x0 + r.d_sigma * denoised.eps

    return divergence(v, z)

  def step(state: tuple[Array, Array], interval: tuple[Array, Array]):
    (z, gained), (t, s) = state, interval
    h = s - t
    v1, d1 = slope(z, t)
    v2, d2 = slope(z + h / 2 * v1, t + h / 2)
    v3, d3 = slope(z + h / 2 * v2, t + h / 2)
    v4, d4 = slope(z + h * v3, s)
    return (z + h / 6 * (v1 + 2 * v2 + 2 * v3 + v4), gained + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

  (z, gained), _ = jax.lax.scan(step, (z, jnp.zeros(len(z), z.dtype)), (times[:-1], times[1:]))
  variance = process.alpha(times[-1]) ** 2 + process.sigma(times[-1]) ** 2
  return gained - sum_per_sample(z**2 / variance + jnp.log(2 * jnp.pi * variance)) / 2


def raw_log_density(log_density: Array, std: Array, shape: tuple[int, ...]) -> Array:
  """log density of raw latents from that of (raw - mean) / std [B]; std broadcasts to `shape`, that of
  one latent.
  """
  return log_density - jnp.sum(jnp.broadcast_to(jnp.log(std), shape))


def bits_per_dim(log_density: Array, dimension: int) -> Array:
  """Nats of log density to negative bits per value; of latents, if the density is theirs."""
  return -log_density / (dimension * math.log(2))


class Bound(NamedTuple):
  """The terms of (3) in nats [B]; their sum bounds -log p(x0)."""

  prior: Array
  diffusion: Array
  reconstruction: Array


def variational_bound(
  process: Process, denoise: Denoise, x0: Array, times: Array, keys: Array, samples: int | None = None
) -> Bound:
  """The bound (3) of x0 [B, ...] for the chain `times` [T + 1], an unbiased estimate; keys [B].

  It uses all T steps with one noise each, or `samples` of them, evenly spaced from a random shift per
  example.
  """
  key_place, key_noise = split_each(keys)
  steps = len(times) - 1
  count = steps if samples is None else samples
  shift = jax.vmap(lambda key: jax.random.uniform(key, (), x0.dtype))(key_place)
  snr = (process.alpha(times) / process.sigma(times)) ** 2

  def step(sum_so_far: Array, j: Array):
    place = (j + shift) * (steps / count)
    i = jnp.full(len(x0), j) if samples is None else jnp.minimum(place.astype(jnp.int32), steps - 1)
    t, gain = times[i + 1], snr[i] - snr[i + 1]
    z = expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * normal_like(
      fold_each(key_noise, j), x0
    )
    return sum_so_far + gain / 2 * sum_per_sample((x0 - denoise(z, t).x0) ** 2), None

  diffusion, _ = jax.lax.scan(step, jnp.zeros(len(x0), x0.dtype), jnp.arange(count))
  squared, signal = process.sigma(times[-1]) ** 2, process.alpha(times[-1]) ** 2
  variance = squared + signal
  prior = sum_per_sample(signal * x0**2 / variance + squared / variance - 1 - jnp.log(squared / variance)) / 2
  reconstruction = x0[0].size / 2 * (1 + jnp.log(2 * jnp.pi) - jnp.log(snr[0]))
  return Bound(prior, diffusion * (steps / count), jnp.full(len(x0), reconstruction))
