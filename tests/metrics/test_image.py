"""PSNR by its definition; SSIM against scikit-image's figures and against its definition written as loops."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.metrics.image import psnr, ssim

FIXTURE = Path(__file__).parents[1] / "parity" / "ssim.npz"


def signed(images):
  return images.astype(np.float32) / 127.5 - 1


def plain_ssim(a, b):
  """SSIM of float64 [H, W] in [0, 1], window by window; windows of at most 11 pixels a side."""
  height, width = (min(11, side) for side in a.shape)
  y, x = (np.arange(side) - (side - 1) / 2 for side in (height, width))
  weights = np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * 1.5**2))
  weights /= weights.sum()
  values = []
  for i in range(a.shape[0] - height + 1):
    for j in range(a.shape[1] - width + 1):
      p, q = (image[i : i + height, j : j + width] for image in (a, b))
      mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
      dp, dq = p - mean_p, q - mean_q
      top = (2 * mean_p * mean_q + 0.01**2) * (2 * (weights * dp * dq).sum() + 0.03**2)
      values.append(top / ((mean_p**2 + mean_q**2 + 0.01**2) * ((weights * (dp**2 + dq**2)).sum() + 0.03**2)))
  return np.mean(values)


@pytest.mark.parametrize("case", ["grey", "colour", "one_place", "one_row"])
def test_ssim_is_scikit_images(case):
  stored = np.load(FIXTURE)
  measured = ssim(signed(stored[f"{case}_a"]), signed(stored[f"{case}_b"]))
  np.testing.assert_allclose(measured, stored[f"{case}_ssim"], atol=1e-6)


@pytest.mark.parametrize("low, high", [(0, 256), (200, 256), (120, 136), (254, 256)])
def test_ssim_is_that_of_float64_on_flat_and_bright_pictures_too(low, high):
  a, b = np.random.default_rng(0).integers(low, high, (2, 1, 24, 20, 1)).astype(np.uint8)
  expected = plain_ssim(*(x[0, ..., 0] / 255 for x in (a, b)))
  np.testing.assert_allclose(ssim(signed(a), signed(b)), [expected], atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 8), (4, 20), (1, 1), (13, 6)])
def test_ssim_of_small_images_cuts_the_window(shape):
  a, b = np.random.default_rng(0).uniform(0, 1, (2, *shape))
  measured = ssim(*(jnp.asarray(2 * x - 1)[None, ..., None] for x in (a, b)))
  np.testing.assert_allclose(measured, [plain_ssim(a, b)], atol=1e-6)


def test_ssim_does_not_depend_on_the_unit():
  a, b = np.random.default_rng(0).uniform(-1, 1, (2, 3, 16, 12, 3)).astype(np.float32)
  np.testing.assert_allclose(ssim(a, b), ssim(127.5 * a, 127.5 * b, peak=255), rtol=1e-4)


def test_psnr_is_its_definition():
  a = np.zeros((2, 4, 6, 3), np.float32)
  b = np.stack([np.full((4, 6, 3), 0.2), np.full((4, 6, 3), -2.0)]).astype(np.float32)
  np.testing.assert_allclose(psnr(a, b), [20.0, 0.0], atol=1e-5)
  assert np.isposinf(psnr(a, a)).all()


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_each_image_is_measured_alone(metric):
  a, b = np.random.default_rng(0).uniform(-1, 1, (2, 4, 12, 12, 1)).astype(np.float32)
  whole = jax.jit(metric)(a, b)
  assert whole.shape == (4,) and whole.dtype == jnp.float32
  alone = np.concatenate([metric(a[i : i + 1], b[i : i + 1]) for i in range(4)])
  np.testing.assert_allclose(whole, alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_low_precision_images_are_measured_in_float32(metric):
  a, b = (jnp.asarray(x, jnp.bfloat16) for x in np.random.default_rng(0).uniform(-1, 1, (2, 2, 12, 12, 1)))
  np.testing.assert_allclose(metric(a, b), metric(a.astype(jnp.float32), b.astype(jnp.float32)), rtol=1e-6)
