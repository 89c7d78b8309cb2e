"""How near one image is to another.

  (1)  PSNR = 10 log10(peak^2 / MSE)
  (2)  SSIM = (2 mu_a mu_b + c1) (2 s_ab + c2) / ((mu_a^2 + mu_b^2 + c1) (s_aa + s_bb + c2))

(2) is eq. 13 of Wang et al. 2004, with c1 = (0.01 peak)^2, c2 = (0.03 peak)^2 and the local moments
of their eqs. 14-16 under a Gaussian window, at every place where the window lies wholly inside.  It
presumes intensities in [0, peak], as files have them; images here are in [-peak / 2, peak / 2] and
are lifted by peak / 2, so that the figure is the one that others measure on the uint8 files.
"""

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
  down, across = (jnp.asarray(windows(size)) for size in a.shape[1:3])

  def local(x: Array) -> Array:
    return jnp.einsum("yh,bhwc,xw->byxc", down, x, across, precision="highest")

  mean_a, mean_b = local(a), local(b)
  variances = local(a * a) + local(b * b) - mean_a**2 - mean_b**2
  covariance = local(a * b) - mean_a * mean_b
  c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
  luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
  return (luminance * (2 * covariance + c2) / (variances + c2)).mean((1, 2, 3))


def windows(size: int) -> np.ndarray:
  """The Gaussian window at each of its places along a side: float32 [places, size], rows sum to one."""
  length = min(WINDOW, size)
  weights = np.exp(-0.5 * ((np.arange(length) - (length - 1) / 2) / WIDTH) ** 2)
  places = range(size - length + 1)
  return np.stack([np.pad(weights / weights.sum(), (i, size - length - i)) for i in places]).astype(
    np.float32
  )
