"""Real trainings under kill -9, at moments of every kind."""

import collections

import pytest

from tests.faults.kills import MOMENTS, kills

COUNT = len(MOMENTS) + 1


@pytest.mark.slow
def test_kills_at_moments_of_every_kind_lose_no_checkpoint_and_no_bit(tmp_path):
  counts = collections.Counter(kind for kind, _, _ in kills(tmp_path, COUNT, seed=0))
  assert sum(counts.values()) == COUNT and len(counts) > 4, counts
