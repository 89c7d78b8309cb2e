"""The Fréchet distance against its closed forms and against the square root of a product of matrices by definition."""

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics.frechet import Moments, frechet, statistics


def covariance(rng, size, rank=None):
  factor = rng.normal(size=(size, rank or 2 * size))
  return factor @ factor.T / factor.shape[1]


def plain_frechet(a, b):
  """Equation (1) with a general matrix's eigenvalues: those of a product of covariances are real and not negative."""
  product = np.sqrt(np.linalg.eigvals(a.covariance @ b.covariance).real).sum()
  return np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance) - 2 * product


def test_statistics_are_numpys():
  features = np.random.default_rng(0).normal(3, 2, (50, 7)).astype(np.float32)
  found = statistics(features)
  np.testing.assert_allclose(found.mean, features.astype(np.float64).mean(0))
  np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64).T))


def test_of_commuting_gaussians_it_is_that_of_their_deviations():
  rng = np.random.default_rng(0)
  turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
  mean_a, mean_b, std_a, std_b = rng.uniform(0, 2, (4, 6))
  turned = lambda std: turn * std**2 @ turn.T
  expected = np.square(mean_a - mean_b).sum() + np.square(std_a - std_b).sum()
  np.testing.assert_allclose(frechet(Moments(mean_a, turned(std_a)), Moments(mean_b, turned(std_b))), expected, rtol=1e-12)


def test_of_any_gaussians_it_is_the_definition():
  rng = np.random.default_rng(1)
  a, b = (Moments(rng.normal(size=12), covariance(rng, 12)) for _ in range(2))
  np.testing.assert_allclose(frechet(a, b), plain_frechet(a, b), rtol=1e-10)


def test_the_product_root_is_scipys():
  linalg = pytest.importorskip("scipy.linalg")
  rng = np.random.default_rng(2)
  a, b = (Moments(np.zeros(9), covariance(rng, 9)) for _ in range(2))
  expected = np.trace(a.covariance + b.covariance - 2 * linalg.sqrtm(a.covariance @ b.covariance).real)
  np.testing.assert_allclose(frechet(a, b), expected, rtol=1e-9)


def test_rank_deficient_covariances_lose_nothing():
  rng = np.random.default_rng(3)
  low = covariance(rng, 40, rank=3)
  scaled = Moments(np.zeros(40), 4 * low)  # (C 4C)^(1/2) = 2C
  np.testing.assert_allclose(frechet(Moments(np.zeros(40), low), scaled), np.trace(low), rtol=1e-9)
  one, other = np.zeros((40, 40)), np.zeros((40, 40))
  one[:3, :3], other[3:7, 3:7] = np.eye(3), 2 * np.eye(4)  # of no common direction: the product is zero
  np.testing.assert_allclose(frechet(Moments(np.zeros(40), one), Moments(np.zeros(40), other)), 3 + 8, rtol=1e-12)
  few = statistics(rng.normal(size=(5, 40)))
  assert abs(frechet(few, few)) < 1e-9 * np.trace(few.covariance)


def test_it_is_symmetric_and_follows_scale():
  rng = np.random.default_rng(4)
  a, b = (statistics(rng.normal(size=(30, 8))) for _ in range(2))
  np.testing.assert_allclose(frechet(a, b), frechet(b, a), rtol=1e-10)
  scaled = [Moments(3 * m.mean, 9 * m.covariance) for m in (a, b)]
  np.testing.assert_allclose(frechet(*scaled), 9 * frechet(a, b), rtol=1e-10)


@pytest.mark.parametrize(
  ("features", "told"),
  [(np.zeros((1, 3)), "at least 2 rows"), (np.zeros(3), "at least 2 rows"), (np.full((3, 3), np.nan), "not finite")],
)
def test_what_has_no_covariance_is_refused(features, told):
  with pytest.raises(UserError, match=told):
    statistics(features)


def test_features_of_two_extractors_are_refused():
  with pytest.raises(UserError, match="widths 3 and 4"):
    frechet(Moments(np.zeros(3), np.eye(3)), Moments(np.zeros(4), np.eye(4)))
