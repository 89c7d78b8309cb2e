"""The plot of benchmarks/adversarial.py on made-up figures; that it trains, its plot in docs/ tells."""

import numpy as np

from benchmarks.adversarial import CHOSEN, objective, plot


def test_the_plot_shows_what_was_measured():
  rows = [
    {"step": n, "d_real": 1.0, "d_fake": -1.0, "adversarial_weight": 0.1 * n} for n in range(10, 201, 10)
  ]
  held_out = [{"step": n, "held_out_psnr": 20 + n / 100} for n in (100, 200)]
  picture = plot({CHOSEN: rows + held_out, "without": held_out}, start_step=50)
  assert picture.dtype == np.uint8 and picture.shape == (780, 640, 3)
  assert all(len(np.unique(part.reshape(-1, 3), axis=0)) > 3 for part in np.split(picture, 3)), (
    "each third has lines"
  )


def test_the_discriminator_starts_when_it_is_reported():
  assert objective(500).start_step == 500 and objective(500).inner.network == objective(0).network
