"""Precision, recall, density and coverage against their definitions written as loops, and where they are
known.
"""

from pathlib import Path

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics import features
from jldm.metrics.intervals import jackknife
from jldm.metrics.manifold import manifold
from tests.parity.metrics import NEIGHBOURS

FIXTURE = np.load(Path(__file__).parents[1] / "parity" / "metrics.npz")


def plain(real, samples, k, k_density):
  """The definitions, point by point."""
  apart = lambda a, b: ((a - b) ** 2).sum()

  def radius(points, i, k):
    return sorted(apart(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

  def share(centres, points, k):
    reach = [radius(centres, i, k) for i in range(len(centres))]
    return np.mean([any(apart(c, p) <= r for c, r in zip(centres, reach)) for p in points])

  reach = [radius(real, i, k_density) for i in range(len(real))]
  within = np.array([[apart(c, p) < r for c, r in zip(real, reach)] for p in samples])
  return {
    "precision": share(real, samples, k),
    "recall": share(samples, real, k),
    "density": within.sum() / (k_density * len(samples)),
    "coverage": within.any(0).mean(),
  }


@pytest.mark.parametrize("block", [10_000, 100, 1])
def test_they_are_their_definitions(block, monkeypatch):
  monkeypatch.setattr(features, "BLOCK", block)
  rng = np.random.default_rng(0)
  real, samples = rng.normal(size=(40, 3)), rng.normal(0.7, 1.3, size=(25, 3))
  actual = manifold(real, samples, k=3, k_density=5)
  expected = plain(real, samples, 3, 5)
  assert 0 < actual["precision"] < 1 and 0 < actual["recall"] < 1 and 0 < actual["coverage"] < 1
  assert actual == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("width", [8, 64])
def test_features_that_repeat_are_counted_as_exact_arithmetic_does(width):
  for seed in range(10):
    rng = np.random.default_rng(seed)
    points = rng.integers(-8, 9, (20, width))
    real, samples = (np.repeat(each, rng.integers(6, 9, len(each)), 0) for each in (points[:16], points[4:]))
    actual = manifold(0.1 * real, 0.1 * samples)  # products of tenths are rounded
    assert actual == pytest.approx(plain(real, samples, 3, 5), abs=1e-12), seed


@pytest.mark.parametrize("k", NEIGHBOURS)
def test_they_are_prdcs(k):
  actual = manifold(FIXTURE["real"], FIXTURE["samples"], k=k, k_density=k)
  np.testing.assert_allclose(list(actual.values()), FIXTURE[f"prdc_{k}"], rtol=1e-6)


def test_jackknifed_intervals_are_no_narrower_than_draws_spread():
  rng = np.random.default_rng(0)
  draw = lambda: (rng.normal(size=(200, 4)), rng.normal(0.3, 1.2, (200, 4)))
  drawn = [manifold(*draw()) for _ in range(100)]
  spread = {name: np.std([each[name] for each in drawn]) for name in drawn[0]}
  actual = [jackknife(manifold, *draw(), groups=10) for _ in range(8)]
  for name, std in spread.items():
    half = np.mean([each[name].high - each[name].low for each in actual]) / 2
    assert 1.6 * std < half < 6 * std, name  # 1.96, but for chance; too wide rather than too narrow


def test_the_same_points_are_wholly_covered():
  points = np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32)
  actual = manifold(points, points)
  assert actual["precision"] == actual["recall"] == actual["coverage"] == 1
  assert actual["density"] >= 1  # in one's own ball, and in those of the points that one is near to


def test_points_elsewhere_are_nowhere():
  points = np.random.default_rng(2).normal(size=(30, 4))
  assert manifold(points, points + 100) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_a_lost_mode_costs_recall_and_coverage_alone():
  rng = np.random.default_rng(3)
  near, far = rng.normal(size=(200, 2)), rng.normal(size=(200, 2)) + 50
  actual = manifold(np.concatenate([near, far]), rng.normal(size=(200, 2)))
  assert actual["precision"] > 0.9 and actual["recall"] < 0.55 and actual["coverage"] < 0.55


def test_a_large_mean_changes_nothing():
  rng = np.random.default_rng(4)
  real, samples = rng.normal(size=(2, 40, 3))
  assert manifold(real + 1e6, samples + 1e6) == pytest.approx(manifold(real, samples), abs=1e-9)


@pytest.mark.parametrize(
  ("real", "samples", "k", "message"),
  [
    (np.zeros((4, 2)), np.zeros((9, 2)), 3, "k < both numbers"),
    (np.zeros((9, 2)), np.zeros((9, 2)), 0, "1 <= k"),
    (np.zeros((9, 2)), np.zeros((9, 3)), 3, "of one width"),
    (np.zeros((9, 2)), np.full((9, 2), np.inf), 3, "not finite"),
  ],
)
def test_what_has_no_neighbours_is_refused(real, samples, k, message):
  with pytest.raises(UserError, match=message):
    manifold(real, samples, k)
