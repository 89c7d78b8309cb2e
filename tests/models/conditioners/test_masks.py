import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.keys import row_keys
from jldm.models.conditioners import masks
from tests.networks import quick

KEYS = row_keys(jax.random.key(0), jnp.arange(300))
draw = functools.partial(quick, static_argnums=(0, 2))(masks.draw_masks)
# hidden
SHARES = {"box": (0.01, 0.57), "frame": (0.43, 0.99), "half_plane": (0.15, 0.85), "strokes": (0.005, 0.6)}


@pytest.mark.parametrize("shape", masks.SHAPES)
def test_shapes_hide_some_of_a_picture_and_differ(shape):
  known = np.asarray(draw((shape,), KEYS, (32, 32)))
  assert known.shape == (300, 32, 32, 1) and known.dtype == np.float32 and set(np.unique(known)) == {0.0, 1.0}
  hidden, (low, high) = 1 - known.mean((1, 2, 3)), SHARES[shape]
  assert low <= hidden.min() and hidden.max() <= high and hidden.std() > 0.02
  assert len(np.unique(known.reshape(300, -1), axis=0)) > 280
  everywhere = known.mean(0)
  assert everywhere.min() > 0 and everywhere.max() < 1, "no place is always known, or always hidden"


def test_a_box_is_a_box():
  for known in np.asarray(draw(("box",), KEYS[:20], (32, 32)))[..., 0]:
    rows, columns = (1 - known).any(1), (1 - known).any(0)
    np.testing.assert_array_equal(1 - known, np.outer(rows, columns))
    assert (
      np.ptp(np.flatnonzero(rows)) + 1 == rows.sum() and np.ptp(np.flatnonzero(columns)) + 1 == columns.sum()
    )


def test_a_mask_depends_on_its_key_alone():
  every = tuple(masks.SHAPES)
  whole = np.asarray(draw(every, KEYS, (8, 8)))
  np.testing.assert_array_equal(draw(every, KEYS[7:12], (8, 8)), whole[7:12])
  np.testing.assert_array_equal(draw(every, KEYS, (8, 8)), whole)


def test_every_shape_has_its_turn():
  either = np.asarray(draw(("box", "frame"), KEYS, (16, 16)))
  corners = either[:, 0, 0, 0] + either[:, -1, -1, 0] + either[:, 0, -1, 0] + either[:, -1, 0, 0]
  assert abs((corners >= 3).mean() - 0.5) < 0.15, "a box hides one corner at most, a frame three or more"


def test_the_grids_do_not_matter_much():
  """The same key is the same mask on a grid that is finer."""
  fine, coarse = (np.asarray(draw(("half_plane",), KEYS[:50], (n, n))) for n in (64, 8))
  assert np.abs(fine.reshape(50, 8, 8, 8, 8).mean((2, 4)) - coarse[..., 0]).mean() < 0.1


def test_pixels_and_places():
  known = np.asarray(draw(tuple(masks.SHAPES), KEYS[:20], (4, 6)))
  pixels = masks.refine(known, 4)
  assert pixels.shape == (20, 16, 24, 1)
  np.testing.assert_array_equal(masks.coarsen(pixels, 4), known)
  np.testing.assert_array_equal(
    masks.coarsen(jnp.ones((1, 16, 24, 1)).at[0, 5, 9].set(0), 4)[0, ..., 0],
    np.ones((4, 6)) - np.outer(np.arange(4) == 1, np.arange(6) == 2),
  )


def test_shares_of_places():
  known = jnp.ones((1, 16, 24, 1)).at[0, :8, 6:].set(0)
  np.testing.assert_array_equal(
    masks.known_share(known, 4)[0, ..., 0], [[1, 0.5, 0, 0, 0, 0]] * 2 + [[1] * 6] * 2
  )


def test_filled_hides_what_is_unknown():
  images, known = jnp.arange(12.0).reshape(1, 2, 3, 2), jnp.zeros((1, 2, 3, 1)).at[:, :, :2].set(1)
  actual = masks.fill_hidden(images, known)
  np.testing.assert_array_equal(actual, masks.fill_hidden(images + 9 * (1 - known), known))
  np.testing.assert_array_equal(actual[:, :, :2], images[:, :, :2])
  np.testing.assert_allclose(actual[0, :, 2], [[4, 5]] * 2)


def test_unknown_shapes_are_refused():
  for shapes in ((), ("ball",)):
    with pytest.raises(UserError, match=r"expected some of \['box', 'frame', 'half_plane', 'strokes'\]"):
      masks.check_shapes(shapes)
