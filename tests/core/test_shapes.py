import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.shapes import batch_rows, expand


@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 2), (4, 5, 3, 2)])
def test_a_number_a_sample_meets_data_of_any_rank(shape):
  rate, like = jnp.arange(4.0), jnp.ones(shape)
  assert expand(rate, like).shape == (4,) + (1,) * (len(shape) - 1)
  for b, sample in enumerate(expand(rate, like) * like):
    np.testing.assert_array_equal(sample, np.full(shape[1:], b))


def test_a_number_for_all_passes_through():
  assert expand(jnp.float32(3), jnp.ones((4, 2))).shape == ()


def test_two_leading_axes_are_kept():
  assert expand(jnp.ones((4, 3)), jnp.ones((4, 3, 8, 8, 1))).shape == (4, 3, 1, 1, 1)


@pytest.mark.parametrize(("count", "size"), [(1, 4), (4, 4), (5, 4), (11, 3)])
def test_batches_of_one_shape_hold_every_row_once_and_the_last_repeats_the_last(count, size):
  batches = [batch_rows(start, size, count) for start in range(0, count, size)]
  assert all(rows.shape == (size,) for rows in batches)
  rows = np.concatenate(batches)
  assert rows[:count].tolist() == list(range(count)) and set(rows[count:]) <= {count - 1}
