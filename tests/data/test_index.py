import numpy as np

from jldm.data.index import example_rows


def test_every_epoch_is_a_permutation_of_its_own():
  epochs = example_rows(3, np.arange(400), 100).reshape(4, 100)
  for epoch in epochs:
    assert sorted(epoch) == list(range(100))
  assert len({tuple(epoch) for epoch in epochs}) == 4
  assert not np.array_equal(epochs[0], np.arange(100))


def test_the_seed_decides():
  positions = np.arange(50)
  np.testing.assert_array_equal(example_rows(-1, positions, 50), example_rows(-1, positions, 50))
  assert not np.array_equal(example_rows(0, positions, 50), example_rows(1, positions, 50))


def test_it_is_a_pure_function_of_each_position():
  whole = example_rows(7, np.arange(1000), 37)
  shuffled = np.random.default_rng(0).permutation(1000)
  np.testing.assert_array_equal(example_rows(7, shuffled, 37), whole[shuffled])
  np.testing.assert_array_equal(example_rows(7, np.arange(1000).reshape(10, 100), 37), whole.reshape(10, 100))
  assert example_rows(7, np.array([], int), 37).shape == (0,)


def test_far_positions_are_legal():
  rows = example_rows(0, np.array([10**12, 10**12 + 1]), 10)
  assert rows.dtype == np.int64 and ((rows >= 0) & (rows < 10)).all()


def test_the_order_is_uniform():
  firsts = [int(example_rows(seed, np.array([0]), 10)[0]) for seed in range(2000)]
  assert np.bincount(firsts, minlength=10).std() < 30  # 200 each, binomial deviation 13
