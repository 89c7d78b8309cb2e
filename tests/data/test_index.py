import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.data.index import batch_positions, index


def test_every_epoch_is_a_permutation_of_its_own():
  epochs = index(3, np.arange(400), 100).reshape(4, 100)
  for epoch in epochs:
    assert sorted(epoch) == list(range(100))
  assert len({tuple(epoch) for epoch in epochs}) == 4
  assert not np.array_equal(epochs[0], np.arange(100))


def test_the_seed_decides():
  positions = np.arange(50)
  np.testing.assert_array_equal(index(-1, positions, 50), index(-1, positions, 50))
  assert not np.array_equal(index(0, positions, 50), index(1, positions, 50))


def test_it_is_a_pure_function_of_each_position():
  whole = index(7, np.arange(1000), 37)
  shuffled = np.random.default_rng(0).permutation(1000)
  np.testing.assert_array_equal(index(7, shuffled, 37), whole[shuffled])
  np.testing.assert_array_equal(index(7, np.arange(1000).reshape(10, 100), 37), whole.reshape(10, 100))
  assert index(7, np.array([], int), 37).shape == (0,)


def test_far_positions_are_legal():
  rows = index(0, np.array([10**12, 10**12 + 1]), 10)
  assert rows.dtype == np.int64 and ((rows >= 0) & (rows < 10)).all()


def test_the_order_is_uniform():
  firsts = [int(index(seed, np.array([0]), 10)[0]) for seed in range(2000)]
  assert np.bincount(firsts, minlength=10).std() < 30  # 200 each, binomial deviation 13


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_share_a_batch_in_order(processes):
  shares = [batch_positions(5, 12, process, processes) for process in range(processes)]
  assert {len(share) for share in shares} == {12 // processes}
  np.testing.assert_array_equal(np.concatenate(shares), np.arange(60, 72))


@pytest.mark.parametrize(("batch_size", "processes", "legal"), [(10, 4, "use 8 or 12"), (2, 4, "use 4")])
def test_a_batch_that_does_not_divide_is_refused(batch_size, processes, legal):
  with pytest.raises(UserError, match=f"batch_size={batch_size} .*{processes} processes; {legal}$"):
    batch_positions(0, batch_size, 0, processes)
