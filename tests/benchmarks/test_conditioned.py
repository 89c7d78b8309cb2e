import numpy as np
import pytest

from benchmarks import conditioned
from jldm.inference.model import build_model
from jldm.models.conditioners.degradation import Downsampled
from jldm.runs import validate


@pytest.mark.parametrize("name", conditioned.RUNS)
def test_every_run_is_an_experiment_with_the_autoencoder_that_it_borrows(name):
  actual, lender = conditioned.experiment(name, "somewhere"), conditioned.RUNS[name][2]
  validate.check_shapes(build_model(actual), actual.data)
  denoiser = actual.stage("denoiser")
  assert actual.data.data_dir == "somewhere" and (len(denoiser.objective.conditioners) == 1) == (
    name in ("plain", "colour")
  )
  if lender:
    lent = conditioned.experiment(lender, "somewhere")
    assert (actual.stage("autoencoder"), actual.data, actual.seed) == (
      lent.stage("autoencoder"),
      lent.data,
      lent.seed,
    )
    theirs = lent.stage("denoiser")
    assert denoiser.steps == theirs.steps and denoiser.objective.network == theirs.objective.network


def test_bicubic_starts_from_the_pixels_that_are_known():
  ramp = np.broadcast_to(np.arange(32, dtype=np.float32)[:, None, None] / 16 - 1, (1, 32, 32, 1))
  spoilt = np.uint8(np.rint(127.5 * (Downsampled()(ramp) + 1)))
  back = conditioned.bicubic(spoilt, 4).astype(float)
  assert back.shape == (1, 32, 32, 1)
  inner = slice(8, 24)
  assert (
    np.abs(back - 127.5 * (ramp + 1))[:, inner].max()
    < 3
    < np.abs(spoilt - 127.5 * (ramp + 1))[:, inner].max()
  )


def test_quality_is_of_single_samples_and_of_their_mean():
  truth = np.zeros((2, 16, 16, 1), np.float32)
  drawn = np.stack([truth + 0.1, truth - 0.1], 1)
  actual = conditioned.quality(drawn, truth)
  np.testing.assert_allclose(actual["psnr"], 10 * np.log10(4 / 0.01), rtol=1e-5)
  assert actual["mean_psnr"] > 100
  np.testing.assert_allclose(
    conditioned.decibels([0.01, 1.0]), np.mean([10 * np.log10(400), 10 * np.log10(4)]), rtol=1e-6
  )
