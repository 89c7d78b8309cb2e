"""Restoration without training: a denoiser conditioned on a measurement y = measure(x0) + noise.

Given z_t alone, x0 is about Gaussian around the denoiser's estimate, with variance r^2 = sigma^2 /
(alpha^2 + sigma^2) of latents of variance one: Song et al. 2023, "Pseudoinverse-guided diffusion
models", section 3.  Given y too, its mean is about the x that minimises

  (1)  |y - measure(x)|^2 / noise^2 + |x - x0_hat|^2 / r^2

with `measure` a decoder and a degradation, so that the misfit is in pixels.  Gauss-Newton
linearises it, and conjugate gradients solve (J'J r^2 / noise^2 + 1) d = r^2 / noise^2 J'(y -
measure(x)) + x0_hat - x; no gradient goes through the denoiser.  The result is the exact posterior mean if
data are standard normal and `measure` is linear.  DiffPIR, Zhu et al. 2023 (2305.08995), eq. 12, is (1)
with a schedule for r.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jldm.core.shapes import expand
from jldm.diffusion.process import Process
from jldm.diffusion.target import Denoised
from jldm.samplers.sample import Denoise, Sampler, draw_samples

Array = jax.Array
Measure = Callable[[Array], Array]  # latents [B, ...] -> measurements [B, ...], per sample


def condition_on_measurement(
  process: Process,
  denoise: Denoise,
  measure: Measure,
  measured: Array,
  noise: Array,
  rounds: int,
  solves: int,
):
  """The denoiser conditioned on `measured` [B, ...] with noise of standard deviation `noise`, [] or [B].

  It linearises `measure` `rounds` times, each with `solves` steps of conjugate gradients.
  """

  def denoise_conditioned(
    z: Array, t: Array, estimate: Array | None = None, to: Array | None = None
  ) -> Denoised:
    x0_hat, eps, variance = denoise(z, t, estimate, to)
    alpha, sigma = expand(process.alpha(t), z), expand(process.sigma(t), z)
    weight = sigma**2 / (alpha**2 + sigma**2) / expand(jnp.asarray(noise), z) ** 2
    x = x0_hat
    for _ in range(rounds):
      predicted, forward = jax.linearize(measure, x)
      transpose = jax.linear_transpose(forward, x)
      normal = lambda d, forward=forward, transpose=transpose: d + weight * transpose(forward(d))[0]
      x = x + conjugate_gradient(normal, weight * transpose(measured - predicted)[0] + x0_hat - x, solves)
    eps_change = jnp.where(sigma > 0, alpha * (x0_hat - x) / jnp.where(sigma > 0, sigma, 1), 0)
    return Denoised(x, eps + eps_change, variance)

  return denoise_conditioned


def conjugate_gradient(operator: Callable[[Array], Array], b: Array, count: int) -> Array:
  """Solves operator(x) = b [B, ...], symmetric and positive, by `count` conjugate gradients per sample."""
  dot = lambda u, v: jnp.sum(u * v, tuple(range(1, b.ndim)), keepdims=True)
  ratio = lambda u, v: jnp.where(v > 0, u / jnp.where(v > 0, v, 1), 0)  # 0 once solved

  def body(_, carried):
    x, residual, direction = carried
    image = operator(direction)
    length = ratio(dot(residual, residual), dot(direction, image))
    new_residual = residual - length * image
    share = ratio(dot(new_residual, new_residual), dot(residual, residual))
    return x + length * direction, new_residual, new_residual + share * direction

  return jax.lax.fori_loop(0, count, body, (jnp.zeros_like(b), b, b))[0]


def restore_latents(
  process: Process,
  denoise: Denoise,
  sampler: Sampler,
  like: Array,
  measure: Measure,
  measured: Array,
  noise: Array,
  pairs: Array,
  keys: Array,
  rounds: int = 1,
  solves: int = 10,
) -> Array:
  """Latents in the shape of `like` [B, ...] whose `measure` is `measured` up to noise [] or [B] -> [B,
  ...]; keys [B].
  """
  denoise = condition_on_measurement(process, denoise, measure, measured, noise, rounds, solves)
  return draw_samples(process, denoise, sampler, like, pairs, keys)
