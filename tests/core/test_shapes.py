import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.shapes import batch_rows, expand, trace_shapes


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


@dataclasses.dataclass(frozen=True)
class Doubled:
  width: int

  def init(self, traced, x):
    return {"kernel": jnp.zeros((x.shape[-1], 2 * self.width)), "sum": traced["offset"] + x.sum()}


def test_shapes_are_those_of_eval_shape_and_nothing_is_traced_twice(monkeypatch):
  init, calls = Doubled.init, []
  monkeypatch.setattr(Doubled, "init", lambda *args: calls.append(args[0].width) or init(*args))
  given = {"offset": np.float32(1)}
  for width, size in ((4, 3), (4, 3), (5, 3), (4, 2), (5, 3)):
    shapes = trace_shapes(Doubled.init, Doubled(width), given, jnp.ones((1, size)))
    assert shapes == jax.eval_shape(lambda x, one=Doubled(width): init(one, given, x), jnp.ones((1, size)))
    shapes.clear()  # what a caller does with them is its own
  assert calls == [4, 5, 4]
