"""Kernel distances against torch-fidelity, their definitions as loops, and many draws."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics import features
from jldm.metrics.mmd import cmmd, gaussian_kernel, kernel_distance, kid, mmd
from tests.parity.metrics import SEED, SUBSET_SIZE, SUBSETS

FIXTURE = np.load(Path(__file__).parents[1] / "parity" / "metrics.npz")


def sets(rows: int, columns: int, others: int = 25):
  rng = np.random.default_rng(0)
  return rng.normal(size=(rows, columns)), rng.normal(0.5, 1.3, (others, columns))


def test_kid_is_torch_fidelitys():
  actual = kid(FIXTURE["real"], FIXTURE["samples"], SUBSETS, SUBSET_SIZE, SEED)
  np.testing.assert_allclose(actual, FIXTURE["kid"], rtol=1e-6)
  assert kid(FIXTURE["real"], FIXTURE["samples"], SUBSETS, SUBSET_SIZE, SEED + 1).mean != actual.mean


def test_the_gaussian_kernel_is_torch_fidelitys():
  np.testing.assert_allclose(
    mmd(gaussian_kernel, FIXTURE["real"][:200], FIXTURE["samples"][:200]).value, FIXTURE["rbf"], rtol=1e-6
  )


@pytest.mark.parametrize("block", [10_000, 100, 1])
def test_the_kernel_distance_is_its_definition(block, monkeypatch):
  monkeypatch.setattr(features, "BLOCK", block)
  a, b = sets(20, 3)
  k = lambda x, y: (x @ y / 3 + 1) ** 3
  within = lambda s: np.mean([k(x, y) for x, y in itertools.permutations(s, 2)])
  expected = within(a) + within(b) - 2 * np.mean([k(x, y) for x in a for y in b])
  np.testing.assert_allclose(kernel_distance(a, b).value, expected, rtol=1e-12)


def test_cmmd_is_its_definition():
  a, b = sets(20, 3)
  unit = lambda s: [x / np.sqrt((x**2).sum()) for x in s]
  k = lambda x, y: np.exp(-((x - y) ** 2).sum() / 200)
  average = lambda s, t: np.mean([k(x, y) for x in unit(s) for y in unit(t)])
  np.testing.assert_allclose(
    cmmd(a, b).value, 1000 * (average(a, a) + average(b, b) - 2 * average(a, b)), rtol=1e-9
  )
  np.testing.assert_allclose(cmmd(3 * a, b), cmmd(a, b), rtol=1e-9)


def test_unbiased_is_zero_on_average_and_cmmd_is_not_below():
  rng = np.random.default_rng(0)
  actual = [kernel_distance(*rng.normal(size=(2, 50, 4))).value for _ in range(200)]
  assert abs(np.mean(actual)) < 4 * np.std(actual) / 200**0.5
  assert min(actual) < 0 <= min(cmmd(*rng.normal(size=(2, 50, 4))).value for _ in range(20))


@pytest.mark.parametrize("measure", [kernel_distance, cmmd])
def test_the_interval_holds_what_draws_give_on_average(measure):
  rng = np.random.default_rng(0)
  actual = np.array([measure(rng.normal(size=(200, 5)), rng.normal(0.4, 1.1, (150, 5))) for _ in range(200)])
  average = actual[:, 0].mean()
  assert 0.89 < ((actual[:, 1] <= average) & (average <= actual[:, 2])).mean() <= 1
  assert 0.8 < 3.92 * actual[:, 0].std() / (actual[:, 2] - actual[:, 1]).mean() < 1.2


@pytest.mark.parametrize(
  "act, message",
  [
    (
      lambda a, b: kid(a, b, 2, 26),
      "2 subsets of 26 from 40 and 25 images; expected at least one subset of 2 to 25",
    ),
    (lambda a, b: kid(a, b, 0, 20), "0 subsets"),
    (lambda a, b: kid(a, b[:, :2], 2, 20), "of one width"),
    (lambda a, b: cmmd(a, b * np.nan), "not finite"),
    (lambda a, b: cmmd(a, b * 0), "length 0 have no direction"),
    (lambda a, b: kernel_distance(a[:1], b), "at least 2 rows"),
  ],
)
def test_what_means_nothing_is_refused(act, message):
  with pytest.raises(UserError, match=message):
    act(*sets(40, 3))
