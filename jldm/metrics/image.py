"""Similarity of two images: PSNR and SSIM.

  (1)  PSNR = 10 log10(peak^2 / MSE)
  (2)  SSIM = (2 mu_a mu_b + c1) (2 s_ab + c2) / ((mu_a^2 + mu_b^2 + c1) (s_aa + s_bb + c2))

(2) is eq. 13 of Wang et al. 2004, with c1 = (0.01 peak)^2, c2 = (0.03 peak)^2 and the local moments
of their eqs. 14-16 under a Gaussian window, at every place where the window lies wholly inside.  It
presumes intensities in [0, peak], as files have them; images here are in [-peak / 2, peak / 2] and
are lifted by peak / 2, so that the figure is the one that others measure on the uint8 files.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

WINDOW, WIDTH = 11, 1.5  # pixels, and the Gaussian's standard deviation in pixels


def psnr(a: Array, b: Array, peak: float = 2.0) -> Array:
  """(1) in dB: a, b [B, ...] that span `peak` (2 for [-1, 1]) -> [B]; equal images give inf."""
  error = (jnp.asarray(a, jnp.float32) - jnp.asarray(b, jnp.float32)) ** 2
  return 10 * jnp.log10(peak**2 / error.mean(range(1, error.ndim)))


def ssim(a: Array, b: Array, peak: float = 2.0) -> Array:
  """(2), mean over places and channels: a, b [B, H, W, C] in [-peak / 2, peak / 2] -> [B].

  Along a side of fewer than 11 pixels the window is cut to that side.
  """
  a, b = (jnp.asarray(x, jnp.float32) + peak / 2 for x in (a, b))
  down, across = (window(size) for size in a.shape[1:3])
  places = (len(a), a.shape[1] - len(down) + 1, a.shape[2] - len(across) + 1, a.shape[3])
  offsets = jnp.stack(jnp.meshgrid(jnp.arange(len(down)), jnp.arange(len(across)), indexing="ij"), -1)
  weights = jnp.asarray(np.outer(down, across).ravel(), jnp.float32)

  def local(of_pixels: Callable[[Array, Array], Array]) -> Array:
    """The weighted sum of of_pixels(a, b) over the window of each place."""

    def add(total: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
      (y, x), weight = at
      pixels = (jax.lax.dynamic_slice(image, (0, y, x, 0), places) for image in (a, b))
      return total + weight * of_pixels(*pixels), None

    return jax.lax.scan(add, jnp.zeros(places), (offsets.reshape(-1, 2), weights))[0]

  mean_a, mean_b = local(lambda a, b: a), local(lambda a, b: b)
  variances = local(
    lambda a, b: (a - mean_a) ** 2 + (b - mean_b) ** 2
  )  # of differences: squares would cancel
  covariance = local(lambda a, b: (a - mean_a) * (b - mean_b))
  c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
  luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
  return (luminance * (2 * covariance + c2) / (variances + c2)).mean((1, 2, 3))


def window(size: int) -> np.ndarray:
  """The Gaussian window along a side, float64 [at most WINDOW], whose sum is one."""
  length = min(WINDOW, size)
  weights = np.exp(-0.5 * ((np.arange(length) - (length - 1) / 2) / WIDTH) ** 2)
  return weights / weights.sum()
