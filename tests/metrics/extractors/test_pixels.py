import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics.extractors.extractor import load_extractor
from jldm.metrics.extractors.pixels import PIXELS, SIDE, extract_pixels, pixel_shares


def test_means_of_blocks():
  images = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), np.uint8)
  blocks = (images / 127.5 - 1).reshape(3, SIDE, 2, SIDE, 3, 3).mean((2, 4))
  np.testing.assert_allclose(extract_pixels((), images).features, blocks.reshape(3, -1), atol=1e-6)


@pytest.mark.parametrize("size", [8, 11, 28])
def test_every_pixel_counts_as_much(size):
  np.testing.assert_allclose(pixel_shares(size).sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(pixel_shares(size).sum(0), SIDE / size, rtol=1e-6)


def test_pictures_that_are_too_small_are_refused():
  assert load_extractor(PIXELS).width((28, 8, 3)) == 192
  with pytest.raises(UserError, match="expects at least 8x8"):
    load_extractor(PIXELS).width((28, 7, 3))
