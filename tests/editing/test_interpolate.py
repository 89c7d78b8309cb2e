"""The great circle: ends, norms, even angles, and what happens where there is none."""

import jax
import jax.numpy as jnp
import numpy as np

from jldm.editing.interpolate import slerp, slerp_path

A = jax.random.normal(jax.random.key(0), (4, 3, 2))
B = 2 * jax.random.normal(jax.random.key(1), (4, 3, 2))
norm = lambda x: np.linalg.norm(np.asarray(x).reshape(len(x), -1), axis=1)


def test_the_ends_are_the_two():
  np.testing.assert_allclose(slerp(A, B, 0.0), A, atol=1e-6)
  np.testing.assert_allclose(slerp(A, B, 1.0), B, atol=1e-6)


def test_norms_go_linearly_and_angles_evenly():
  shares = jnp.linspace(0, 1, 5)
  places = np.stack([slerp(A, B, share) for share in shares])
  for share, place in zip(shares, places):
    np.testing.assert_allclose(norm(place), (1 - share) * norm(A) + share * norm(B), rtol=1e-5)
  units = (places / np.stack([norm(p) for p in places])[..., None, None]).reshape(5, 4, -1)
  angles = np.arccos(np.sum(units[:-1] * units[1:], -1))
  np.testing.assert_allclose(angles, np.broadcast_to(angles[:1], angles.shape), rtol=1e-4)


def test_each_sample_has_its_own_share():
  shares = jnp.array([0.0, 0.3, 0.6, 1.0])
  each = [slerp(A[i : i + 1], B[i : i + 1], share)[0] for i, share in enumerate(shares)]
  np.testing.assert_allclose(slerp(A, B, shares), each, rtol=1e-6)


def test_where_there_is_no_circle_it_is_straight():
  for other in (A, -A, 0 * A, 3 * A):
    np.testing.assert_allclose(slerp(A, other, 0.25), 0.75 * A + 0.25 * other, atol=1e-5)


def test_between_has_both_ends():
  places = slerp_path(A[0], B[0], 4)
  assert places.shape == (4, 3, 2)
  np.testing.assert_allclose(places[0], A[0], atol=1e-6)
  np.testing.assert_allclose(places[1], slerp(A[:1], B[:1], 1 / 3)[0], atol=1e-6)
  np.testing.assert_allclose(places[-1], B[0], atol=1e-6)
