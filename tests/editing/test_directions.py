"""Directions and their controls, in closed form."""

import jax
import jax.numpy as jnp
import numpy as np

from jldm.editing.directions import attribute_direction, control_directions, coordinate_direction, move_along

LABELS = jnp.array([1, 0, 0, 1, 0, 1, 0, 0], jnp.float32)
EXAMPLES = jax.random.normal(jax.random.key(0), (8, 2, 3)) + 4 * LABELS[:, None, None]


def test_a_step_takes_one_mean_to_the_other():
  with_it, without = EXAMPLES[LABELS == 1].mean(0), EXAMPLES[LABELS == 0].mean(0)
  actual = move_along(without, attribute_direction(EXAMPLES, LABELS), jnp.array([0.0, 1.0, 0.5]))
  np.testing.assert_allclose(actual, [without, with_it, (with_it + without) / 2], rtol=1e-5, atol=1e-6)


def test_controls_are_as_long_and_have_no_part_along_it():
  direction, others = (
    attribute_direction(EXAMPLES, LABELS),
    control_directions(EXAMPLES, LABELS, jax.random.split(jax.random.key(1), 3)),
  )
  assert others.shape == (3, 2, 3)
  for other in others:
    np.testing.assert_allclose(jnp.linalg.norm(other), jnp.linalg.norm(direction), rtol=1e-5)
    assert abs(jnp.vdot(other, direction)) < 1e-5 * jnp.vdot(direction, direction)
  assert np.abs(others[0] - others[1]).max() > 0.1


def test_a_coordinate_is_a_channel_everywhere_or_at_a_place():
  np.testing.assert_array_equal(coordinate_direction((2, 2, 3), 1).sum((0, 1)), [0, 4, 0])
  place = coordinate_direction((2, 2, 3), 2, (1, 0))
  assert place.sum() == 1 and place[1, 0, 2] == 1
