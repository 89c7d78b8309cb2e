import jax.numpy as jnp
import numpy as np

from jldm.metrics.image import psnr, ssim
from jldm.train.evaluate import reconstruction

IMAGES = np.float32(np.random.default_rng(0).uniform(-1, 1, (10, 12, 14, 1)))
worse = lambda images: jnp.clip(images + 0.1 * jnp.arange(1, 5)[:, None, None, None], -1, 1)


def test_means_over_the_images_that_count():
  """Ten images in batches of four, the last one padded."""
  padded = np.concatenate([IMAGES[8:], IMAGES[:2]])
  batches = [(IMAGES[:4], 4), (IMAGES[4:8], 4), (padded, 2)]
  values, first = reconstruction(worse, batches)
  backs = np.concatenate([worse(images)[:count] for images, count in batches])
  assert values.keys() == {"psnr", "ssim"} and all(type(value) is float for value in values.values())
  np.testing.assert_allclose(values["psnr"], np.mean(psnr(IMAGES, backs)), rtol=1e-5)
  np.testing.assert_allclose(values["ssim"], np.mean(ssim(IMAGES, backs)), rtol=1e-5)
  np.testing.assert_array_equal(first, backs[:4])


def test_the_first_batch_without_its_padding():
  _, first = reconstruction(worse, iter([(IMAGES[:4], 3)]))
  np.testing.assert_array_equal(first, worse(IMAGES[:4])[:3])
