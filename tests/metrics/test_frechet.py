"""The Fréchet distance against its closed forms, its definition and torch-fidelity; its interval
against many draws.
"""

import math
from pathlib import Path

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics.frechet import Moments, Running, feature_moments, frechet, frechet_interval

FIXTURE = np.load(Path(__file__).parents[1] / "parity" / "metrics.npz")


def covariance(rng, size, rank=None):
  factor = rng.normal(size=(size, rank or 2 * size))
  return factor @ factor.T / factor.shape[1]


def plain_frechet(a, b):
  """Equation (1) with a general matrix's eigenvalues: those of a product of covariances are real and
  not negative.
  """
  product = np.sqrt(np.linalg.eigvals(a.covariance @ b.covariance).real).sum()
  return np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance) - 2 * product


def test_statistics_are_numpys():
  features = np.random.default_rng(0).normal(3, 2, (50, 7)).astype(np.float32)
  actual = feature_moments(features)
  np.testing.assert_allclose(actual.mean, features.astype(np.float64).mean(0))
  np.testing.assert_allclose(actual.covariance, np.cov(features.astype(np.float64).T))


def test_of_commuting_gaussians_it_is_that_of_their_deviations():
  rng = np.random.default_rng(0)
  turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
  mean_a, mean_b, std_a, std_b = rng.uniform(0, 2, (4, 6))
  turned = lambda std: turn * std**2 @ turn.T
  expected = np.square(mean_a - mean_b).sum() + np.square(std_a - std_b).sum()
  np.testing.assert_allclose(
    frechet(Moments(mean_a, turned(std_a)), Moments(mean_b, turned(std_b))), expected, rtol=1e-12
  )


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
  np.testing.assert_allclose(
    frechet(Moments(np.zeros(40), one), Moments(np.zeros(40), other)), 3 + 8, rtol=1e-12
  )
  few = feature_moments(rng.normal(size=(5, 40)))._replace(count=math.inf)
  assert abs(frechet(few, few)) < 1e-9 * np.trace(few.covariance)


def test_it_is_symmetric_and_follows_scale():
  rng = np.random.default_rng(4)
  a, b = (feature_moments(rng.normal(size=(30, 8))) for _ in range(2))
  np.testing.assert_allclose(frechet(a, b), frechet(b, a), rtol=1e-10)
  scaled = [Moments(3 * m.mean, 9 * m.covariance) for m in (a, b)]
  np.testing.assert_allclose(frechet(*scaled), 9 * frechet(a, b), rtol=1e-10)


@pytest.mark.parametrize(
  ("features", "message"),
  [
    (np.zeros((1, 3)), "at least 2 rows"),
    (np.zeros(3), "at least 2 rows"),
    (np.full((3, 3), np.nan), "not finite"),
  ],
)
def test_what_has_no_covariance_is_refused(features, message):
  with pytest.raises(UserError, match=message):
    feature_moments(features)


def test_features_of_two_extractors_are_refused():
  with pytest.raises(UserError, match="widths 3 and 4"):
    frechet(Moments(np.zeros(3), np.eye(3)), Moments(np.zeros(4), np.eye(4)))
  features = np.random.default_rng(0).normal(size=(9, 3))
  for other in ("fashion", ""):
    with pytest.raises(UserError, match=f"of 'inception' and of '{other}' do not compare"):
      frechet(feature_moments(features, "inception"), feature_moments(features, other))


@pytest.mark.parametrize("count, refused", [(12, True), (13, False)])
def test_no_more_images_than_features_are_refused(count, refused):
  few, many = (np.random.default_rng(0).normal(size=(n, 12)) for n in (count, 40))
  for measure in (lambda a, b: frechet(feature_moments(a), feature_moments(b)), frechet_interval):
    for pair in ((few, many), (many, few)):
      if refused:
        with pytest.raises(UserError, match=r"12 images for features of width 12.*expected more than 12"):
          measure(*pair)
      else:
        measure(*pair)


def test_it_is_torch_fidelitys():
  a, b = feature_moments(FIXTURE["real"]), feature_moments(FIXTURE["samples"])
  np.testing.assert_allclose(frechet(a, b), FIXTURE["frechet"], rtol=1e-6)


def test_parts_and_processes_merge_exactly():
  features = np.random.default_rng(0).normal(1e4, 1, (101, 6)).astype(np.float32)
  streamed, parts = Running("a"), [Running("a"), Running("a")]
  for start, stop in ((0, 40), (40, 40), (40, 41), (41, 101)):
    streamed = streamed.add(features[start:stop])
  parts = [part.add(some) for part, some in zip(parts, (features[:33], features[33:]))]
  whole = feature_moments(features, "a")
  for actual in (
    streamed.moments(),
    parts[0].merge(parts[1]).moments(),
    Running("a").merge(streamed).moments(),
  ):
    assert actual.count == 101 and actual.source == "a"
    np.testing.assert_allclose(actual.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(
      actual.covariance, np.cov(features.astype(np.float64).T), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize(
  "act, message",
  [
    (lambda one: one.add(np.zeros((3, 7))), r"shape \(3, 7\); expected \[N, 6\]"),
    (lambda one: one.add(np.full((3, 6), np.inf)), "not finite"),
    (lambda one: one.merge(Running("b")), "of 'a' and of 'b' do not compare"),
    (lambda one: one.merge(Running("a").add(np.zeros((3, 7)))), "widths 6 and 7"),
    (lambda one: Running("a").add(np.zeros((1, 6))).moments(), "of 1 images; expected at least 2"),
  ],
)
def test_parts_that_do_not_add_up_are_refused(act, message):
  with pytest.raises(UserError, match=message):
    act(Running("a").add(np.zeros((2, 6))))


@pytest.mark.parametrize("n, width", [(400, 5), (200, 20)])
def test_the_interval_holds_what_draws_give_on_average(n, width):
  """The mean of draws of the same number, its excess included; skewed features, of two covariances."""
  rng = np.random.default_rng(0)
  turn = rng.normal(size=(width, width)) / width**0.5
  draw = lambda shift: np.exp(0.3 * rng.normal(size=(n, width))) @ (turn + shift)
  actual = np.array([frechet_interval(draw(0), draw(0.05)) for _ in range(200)])
  average = actual[:, 0].mean()
  held = ((actual[:, 1] <= average) & (average <= actual[:, 2])).mean()
  assert 0.89 < held <= 1, held
  assert 0.7 < 3.92 * actual[:, 0].std() / (actual[:, 2] - actual[:, 1]).mean() < 1.2


def test_the_interval_is_around_the_distance():
  real, samples = FIXTURE["real"], FIXTURE["samples"]
  actual = frechet_interval(real, samples)
  np.testing.assert_allclose(
    actual.value, frechet(feature_moments(real), feature_moments(samples)), rtol=1e-12
  )
  wider = frechet_interval(real, samples, level=0.99)
  assert wider.low < actual.low < actual.value < actual.high < wider.high
  swapped = frechet_interval(samples, real)
  np.testing.assert_allclose(swapped, actual, rtol=1e-9)


def test_features_that_are_always_zero_do_no_harm():
  pad = lambda features: np.pad(features, ((0, 0), (0, 2)))
  real, samples = FIXTURE["real"], FIXTURE["samples"]
  np.testing.assert_allclose(
    frechet_interval(pad(real), pad(samples)), frechet_interval(real, samples), rtol=1e-6
  )
