"""The Inception Score against torch-fidelity, and where it is known."""

from pathlib import Path

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics.inception_score import inception_score
from tests.parity.metrics import SEED, SPLITS

FIXTURE = np.load(Path(__file__).parents[1] / "parity" / "metrics.npz")


@pytest.mark.parametrize("name, seed", [("shuffled", SEED), ("in_order", None)])
def test_it_is_torch_fidelitys(name, seed):
  np.testing.assert_allclose(
    inception_score(FIXTURE["logits"], SPLITS, seed), FIXTURE[f"inception_score_{name}"], rtol=1e-6
  )


def test_it_counts_the_classes_that_are_reported_apart():
  sure = 1e3 * np.eye(7)[np.arange(70) % 7]
  np.testing.assert_allclose(inception_score(sure, splits=1).mean, 7, rtol=1e-9)
  np.testing.assert_allclose(inception_score(np.ones((70, 7)), splits=5), (1, 0), atol=1e-12)
  np.testing.assert_allclose(
    inception_score(sure[:, :7] * (np.arange(70) % 7 < 2)[:, None], splits=1).mean, 2.2, atol=0.7
  )


def test_predictions_that_are_sure_and_classes_that_nobody_predicts_are_counted():
  sure = 3000.0 * (2 * np.eye(9)[np.arange(60) % 6] - 1)  # three classes have a probability of exactly 0
  np.testing.assert_allclose(inception_score(sure, splits=1, seed=None), (6, 0), rtol=1e-12)


@pytest.mark.parametrize(
  "logits, splits, message",
  [
    (np.zeros((9, 3)), 5, "splits=5 of 9 samples; expected 1 to 4"),
    (np.zeros((9, 3)), 0, "splits=0"),
    (np.full((9, 3), np.nan), 2, "not finite"),
  ],
)
def test_what_means_nothing_is_refused(logits, splits, message):
  with pytest.raises(UserError, match=message):
    inception_score(logits, splits)
