"""Makes ssim.npz, SSIM as scikit-image measures it.  Needs scikit-image:  python tests/parity/ssim.py

scikit-image filters whole images with mirrored borders and then leaves out the 5 pixels whose
windows overlap a border, which are the places where the window lies wholly inside.  It is given the
uint8 images, hence data_range=255.
"""

from pathlib import Path

import numpy as np
from skimage.metrics import structural_similarity

SHAPES = {"grey": (32, 32, 1), "colour": (17, 23, 3), "one_place": (11, 11, 1), "one_row": (11, 20, 3)}


def pairs(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """Images uint8 [5, H, W, C] and what they became: the same, noisy, darker, inverted, black (of a
  square on black).
  """
  height, width, _ = shape
  y, x, _ = np.mgrid[:height, :width, :1]
  phase = rng.uniform(0, 6, (2, 5, 1, 1, shape[2]))
  images = np.clip(127 + 160 * np.sin(0.4 * y + phase[0]) * np.cos(0.3 * x + phase[1]), 0, 255)
  others = np.stack(
    [images[0], images[1] + rng.normal(0, 20, shape), 0.6 * images[2], 255 - images[3], images[4]]
  )
  images[4], others[4] = 0, 0
  images[4, 2:6, 2:6] = 255
  return np.rint(images).astype(np.uint8), np.rint(np.clip(others, 0, 255)).astype(np.uint8)


def main() -> None:
  rng, arrays = np.random.default_rng(0), {}
  for name, shape in SHAPES.items():
    a, b = pairs(rng, shape)
    options = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = [structural_similarity(x, y, channel_axis=-1, **options) for x, y in zip(a, b)]
    arrays |= {f"{name}_a": a, f"{name}_b": b, f"{name}_ssim": np.array(ssim)}
  np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
  main()
