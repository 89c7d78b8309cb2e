"""Measurements on held-out data while training."""

from collections.abc import Callable, Iterable

import jax
import numpy as np

from jldm.metrics.image import psnr, ssim


def reconstruction(reconstruct: Callable, batches: Iterable[tuple[jax.Array, int]]) -> tuple[dict[str, float], np.ndarray]:
  """PSNR in dB and SSIM of reconstruct(images) against images [B, H, W, C] in [-1, 1], means over all images.

  `batches` gives (images, how many of them count).  Returns the means and the first batch's reconstructions.
  """
  values, first = {"psnr": [], "ssim": []}, None
  for images, count in batches:
    back = reconstruct(images)
    values["psnr"].append(np.asarray(psnr(images, back))[:count])
    values["ssim"].append(np.asarray(ssim(images, back))[:count])
    first = np.asarray(back)[:count] if first is None else first
  return {name: float(np.concatenate(each).mean()) for name, each in values.items()}, first
