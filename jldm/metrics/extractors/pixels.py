"""Pictures scaled down to SIDE x SIDE: features without a network or weights.

They contain the coarse layout and the brightness only; a blurred picture scores as well as a sharp one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.metrics.extractors.extractor import Extracted, Extractor, register_extractor

SIDE = 8


def extract_pixels(params: Any, images: jax.Array) -> Extracted:
  """uint8 [B, H, W, C] -> means over SIDE x SIDE places in [-1, 1], [B, SIDE SIDE C]."""
  del params
  down, across = (jnp.asarray(pixel_shares(size)) for size in images.shape[1:3])
  whole = images.astype(jnp.float32) / 127.5 - 1
  small = jnp.einsum("yh,bhwc,xw->byxc", down, whole, across, precision="highest")
  return Extracted(small.reshape(len(images), -1))


def pixel_shares(size: int) -> np.ndarray:
  """The share of each pixel in each place: float32 [SIDE, size]; each row sums to one."""
  edges = np.arange(SIDE + 1) * size / SIDE
  pixels = np.arange(size)
  overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
  return (np.maximum(overlap, 0) * SIDE / size).astype(np.float32)


def check_large_enough(images: np.ndarray) -> np.ndarray:
  if min(images.shape[1:3]) < SIDE:
    raise UserError(
      f"images of {images.shape[1]}x{images.shape[2]}; the extractor 'pixels' expects at least {SIDE}x{SIDE}"
    )
  return images


PIXELS = register_extractor(
  Extractor(
    name="pixels",
    version="1",
    preprocessing=f"means over {SIDE}x{SIDE} places, in [-1, 1]",
    apply=extract_pixels,
    prepare=check_large_enough,
    blind="blur",
  )
)
