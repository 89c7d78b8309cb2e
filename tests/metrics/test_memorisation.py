"""Who copies is flagged, and who does not is not: blurred, far from the data, or of three pictures only."""

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.metrics import features, memorisation
from jldm.metrics.memorisation import audit, leaning, nearest

MIXING = np.random.default_rng(99).normal(size=(10, 30))


def drawn(rng, count: int) -> np.ndarray:
  """Pictures of one origin: a curved sheet of ten dimensions in thirty, and noise."""
  return np.tanh(rng.normal(size=(count, 10)) @ MIXING) + 0.1 * rng.normal(size=(count, 30))


def noisy(rng, pictures: np.ndarray, size: float) -> np.ndarray:
  return pictures + size * rng.normal(size=pictures.shape)


SAMPLERS = {  # of training pictures, 300 samples; whether they copy
  "fresh": (lambda rng, train: drawn(rng, 300), False),
  "blurred": (lambda rng, train: 0.5 * drawn(rng, 300), False),
  "far from the data": (lambda rng, train: noisy(rng, drawn(rng, 300), 1.0), False),
  "of three pictures": (lambda rng, train: noisy(rng, drawn(rng, 3)[np.arange(300) % 3], 0.01), False),
  "64 training pictures": (lambda rng, train: noisy(rng, train[np.arange(300) % 64], 0.05), True),
  "20 copies among fresh": (lambda rng, train: np.r_[drawn(rng, 280), noisy(rng, train[:20], 0.05)], True),
  "near to training pictures": (lambda rng, train: noisy(rng, train[rng.integers(0, 600, 300)], 0.4), True),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("seed", range(3))
def test_copies_are_flagged_and_nothing_else(sampler, seed):
  draw, copies = SAMPLERS[sampler]
  rng = np.random.default_rng(seed)
  train, held_out = drawn(rng, 600), drawn(rng, 300)
  assert audit(draw(rng, train), train, held_out).flagged == copies


def test_a_planted_model_of_64_pictures():
  rng = np.random.default_rng(0)
  train, held_out = drawn(rng, 64), drawn(rng, 300)
  which = rng.integers(0, 64, 200)
  found = audit(noisy(rng, train[which], 0.05), train, held_out, pairs=10)
  assert found.flagged and found.nearer == found.copies == 1 and found.copies_chance < 1e-9
  pairs = found.pairs
  assert len(set(pairs.train)) == 10
  np.testing.assert_array_equal(pairs.train, which[pairs.sample])  # the picture that was copied
  r = pairs.to_train / pairs.to_held_out
  assert (np.diff(r) >= 0).all() and r.max() < found.limit


def test_chances_are_those_of_samplers_that_copy_nothing():
  found = []
  for seed in range(150):
    rng = np.random.default_rng(seed)
    found.append(audit(drawn(rng, 60), drawn(rng, 120), drawn(rng, 120), pairs=1))
  for name, size in (("nearer_chance", 0.2), ("copies_chance", 0.2)):
    rate = np.mean([getattr(each, name) < size for each in found])
    assert rate < size + 3 * (size * (1 - size) / 150) ** 0.5, name
  np.testing.assert_allclose(np.mean([each.nearer for each in found]), 0.5, atol=0.02)


def test_a_shared_picture_is_one_witness():
  """All samples at one training picture: a coin that fell once."""
  rng = np.random.default_rng(0)
  train, held_out = np.r_[np.zeros((1, 3)), rng.normal(5, 1, (99, 3))], rng.normal(5, 1, (100, 3))
  share, chance = leaning(np.zeros((500, 3)), train, held_out)
  assert share == 1 and chance > 0.1


@pytest.mark.parametrize("block", [10_000, 30])
def test_the_nearest_is_found_in_blocks(block, monkeypatch):
  monkeypatch.setattr(features, "BLOCK", block)
  monkeypatch.setattr(memorisation, "COLUMNS", 7 if block < 100 else 1000)
  rng = np.random.default_rng(0)
  points, pool = rng.normal(size=(31, 4)), rng.normal(size=(23, 4))
  apart = np.linalg.norm(points[:, None] - pool, axis=-1)
  place, distance = nearest(points, pool)
  np.testing.assert_array_equal(place, apart.argmin(1))
  np.testing.assert_allclose(distance, apart.min(1), rtol=1e-12)
  own = np.array([3, 20, 8])
  apart = np.linalg.norm(pool[own][:, None] - pool, axis=-1)
  apart[np.arange(3), own] = np.inf
  np.testing.assert_array_equal(nearest(pool[own], pool, own)[0], apart.argmin(1))


def test_a_twin_of_another_index_counts():
  pool = np.random.default_rng(0).normal(size=(5, 3))[[0, 1, 1, 2]]
  place, distance = nearest(pool[1:2], pool, np.array([1]))
  assert place == 2 and distance == 0


def test_a_copy_is_measured_to_the_last_digit():
  """Of two pictures with norms of 1e6, a difference of squares has no digit of a distance of 1e-6 left."""
  point = np.random.default_rng(0).normal(size=(1, 50)) * 1e6 / 50**0.5
  place, distance = nearest(point + 1e-6 / 50**0.5, np.concatenate([point, -point]))
  assert place == 0
  np.testing.assert_allclose(distance, 1e-6, rtol=1e-2)


def test_the_same_seed_gives_the_same_digits():
  rng = np.random.default_rng(0)
  sets = drawn(rng, 50), drawn(rng, 90), drawn(rng, 60)
  first, again, other = (audit(*sets, controls=30, seed=seed) for seed in (0, 0, 1))
  assert first.nearer == again.nearer and first.limit == again.limit != other.limit


def test_exact_copies_of_held_out_pictures_are_no_copies():
  rng = np.random.default_rng(0)
  train, held_out = drawn(rng, 100), drawn(rng, 100)
  assert not audit(held_out[:50], train, held_out).flagged
  assert audit(train[:50], train, held_out).copies == 1


@pytest.mark.parametrize("sets, told", [
  ((np.zeros((19, 3)), np.zeros((30, 3)), np.zeros((30, 3))), "19 samples, 30 training and 30 held-out pictures; expected at least 20"),
  ((np.zeros((30, 3)), np.zeros((30, 2)), np.zeros((30, 3))), "of one width"),
  ((np.full((30, 3), np.nan), np.zeros((30, 3)), np.zeros((30, 3))), "not finite"),
])
def test_what_cannot_be_audited_is_refused(sets, told):
  with pytest.raises(UserError, match=told):
    audit(*sets)
