"""Intervals against closed forms and against many draws."""

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics.intervals import jackknife, mean_interval, proportion_interval


def test_the_mean_and_its_jackknife_are_the_textbooks():
  terms = np.random.default_rng(0).normal(3, 2, 200)
  error = terms.std(ddof=1) / 200**0.5
  np.testing.assert_allclose(
    mean_interval(terms), (terms.mean(), *(terms.mean() + np.array([-1, 1]) * 1.959964 * error)), rtol=1e-6
  )
  actual = jackknife(lambda x: {"mean": x.mean()}, terms, groups=200)[
    "mean"
  ]  # a group each: exactly the standard error
  np.testing.assert_allclose(
    actual, (terms.mean(), *(terms.mean() + np.array([-1, 1]) * 1.971957 * error)), rtol=1e-6
  )


def test_a_share_is_wilsons():
  """Newcombe 1998, Statistics in Medicine 17, table I, has 81 of 263."""
  actual = proportion_interval(np.arange(263) < 81)
  np.testing.assert_allclose(actual, (0.30798, 0.2553, 0.3662), atol=5e-5)
  sure = proportion_interval(np.ones(10, bool))
  assert sure.value == sure.high == 1 and 0.7 < sure.low < 0.75


@pytest.mark.parametrize(
  "draw, measure",
  [
    (lambda rng: rng.exponential(size=100), mean_interval),
    (lambda rng: rng.uniform(size=100) < 0.1, proportion_interval),
    (
      lambda rng: rng.exponential(size=100),
      lambda x: jackknife(lambda x: {"log": np.log(x.mean())}, x, groups=10)["log"],
    ),
  ],
)
def test_an_interval_holds_the_truth_in_95_of_100_draws(draw, measure):
  rng = np.random.default_rng(0)
  truth = measure(np.concatenate([draw(rng) for _ in range(1000)])).value
  held = np.mean([low <= truth <= high for _, low, high in (measure(draw(rng)) for _ in range(400))])
  assert 0.9 < held < 0.985, held


def test_two_sets_add_their_variances():
  a, b = np.random.default_rng(0).normal(size=(2, 60))
  width = lambda *sets: np.ptp(
    jackknife(lambda *s: {"x": sum(each.mean() for each in s)}, *sets, groups=60)["x"][1:]
  )
  np.testing.assert_allclose(width(a, b) ** 2, width(a) ** 2 + width(b) ** 2, rtol=1e-9)


def test_groups_that_do_not_fit_are_refused():
  with pytest.raises(UserError, match="groups=20 of 5 members; expected 2 to that many"):
    jackknife(lambda a: {"x": a.mean()}, np.zeros(5))
