import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.nn.embedding import LabelEmbedding, LevelEmbedding, grid_angles, grid_sinusoids, rotate, sinusoids
from tests.networks import random_params


def test_sinusoids_are_their_formula():
  x = np.array([[0.0, 1.0], [999.0, 12.5]])
  out = sinusoids(jnp.asarray(x, jnp.float32), 8)
  assert out.shape == (2, 2, 8) and out.dtype == jnp.float32
  for place in np.ndindex(2, 2):
    for i in range(4):
      angle = x[place] / 10_000 ** (i / 4)
      np.testing.assert_allclose(out[(*place, i)], math.cos(angle), atol=1e-4)
      np.testing.assert_allclose(out[(*place, 4 + i)], math.sin(angle), atol=1e-4)


def test_sinusoids_of_half_precision_are_float32():
  assert sinusoids(jnp.zeros(3, jnp.bfloat16), 4).dtype == jnp.float32


@pytest.mark.parametrize("height, width", [(2, 2), (3, 5)])
def test_places_are_those_of_the_published_weights(height, width):
  """The first half tells the column and the second the row, each as sines and then cosines."""
  table = grid_sinusoids(height, width, 8)
  assert table.shape == (height * width, 8) and table.dtype == np.float32
  for row, column in np.ndindex(height, width):
    rates = [1.0, 1 / 100]
    expected = [f(place * rate) for place in (column, row) for f in (math.sin, math.cos) for rate in rates]
    np.testing.assert_allclose(table[row * width + column], expected, atol=1e-6)


def test_no_two_places_are_alike():
  table = grid_sinusoids(16, 24, 32)
  distances = np.linalg.norm(table[:, None] - table[None], axis=-1) + 10 * np.eye(len(table))
  assert distances.min() > 0.1


def test_level_embedding_is_its_formula():
  x = np.array([0.0, 0.3, 1.0], np.float32)
  params = random_params(LevelEmbedding(6, frequencies=4), x)
  dense = lambda layer, h: h @ layer["kernel"] + layer["bias"]
  h = dense(params["in"], np.asarray(sinusoids(jnp.asarray(1000 * x), 4), np.float64))
  expected = dense(params["out"], h / (1 + np.exp(-h)))
  np.testing.assert_allclose(
    LevelEmbedding(6, frequencies=4).apply({"params": params}, x), expected, atol=1e-4
  )
  half = LevelEmbedding(6, frequencies=4, dtype="bfloat16").apply({"params": params}, x)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(half), expected, atol=0.03)


def rotated_grid(q, leading=0):
  """The same vector q [D] at every place of a 4 x 6 grid, rotated, after `leading` tokens of it."""
  x = np.broadcast_to(q, (1, leading + 24, 1, len(q))).astype(np.float32)
  return np.asarray(rotate(x, grid_angles(4, 6, len(q), leading)))[0, :, 0]


def test_rotary_scores_know_relative_places_alone():
  q, k = np.random.default_rng(0).normal(size=(2, 8))
  scores = (rotated_grid(q) @ rotated_grid(k).T).reshape(4, 6, 4, 6)
  np.testing.assert_allclose(scores[1:, 2:, 1:, 2:], scores[:-1, :-2, :-1, :-2], atol=1e-4)
  np.testing.assert_allclose(np.einsum("ijij->ij", scores), q @ k, atol=1e-4)
  ahead = scores[0, 0].ravel()
  assert np.abs(ahead[:, None] - ahead)[~np.eye(24, dtype=bool)].min() > 1e-4, "and tell every two apart"


def test_half_the_features_turn_with_the_row_and_half_with_the_column():
  turned = rotated_grid(np.ones(8)).reshape(4, 6, 8)
  assert not np.ptp(turned[..., :4], 1).any() and not np.ptp(turned[..., 4:], 0).any()
  assert (np.ptp(turned[..., :4], 0) > 1e-3).all() and (np.ptp(turned[..., 4:], 1) > 1e-3).all()
  for i, rate in enumerate((1.0, 1 / 100)):
    pair = turned[3, 0, 2 * i] + 1j * turned[3, 0, 2 * i + 1]
    np.testing.assert_allclose(pair, (1 + 1j) * np.exp(3j * rate), atol=1e-5)


def test_leading_tokens_are_not_rotated():
  q = np.random.default_rng(0).normal(size=8)
  with_two = rotated_grid(q, leading=2)
  np.testing.assert_array_equal(with_two[:2], np.float32([q, q]))
  np.testing.assert_array_equal(with_two[2:], rotated_grid(q))


def test_rotation_keeps_lengths_and_dtype():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 3, 8)), jnp.bfloat16)
  turned = rotate(x, grid_angles(2, 3, 8))
  assert turned.dtype == jnp.bfloat16 and turned.shape == x.shape
  norm = lambda x: np.linalg.norm(np.float32(x), axis=-1)
  np.testing.assert_allclose(norm(turned), norm(x), rtol=0.02)


def test_heads_that_a_grid_cannot_rotate_are_refused():
  with pytest.raises(
    UserError, match="heads 6 wide; rotary embeddings of a grid need a width divisible by 4"
  ):
    grid_angles(2, 2, 6)


LABELS = jnp.array([0, 2, -1, 1, -1])
TABLE = random_params(LabelEmbedding(3, 4), LABELS)


def test_one_vector_a_class_and_one_for_the_unknown():
  assert TABLE["table"].shape == (4, 4)
  out = LabelEmbedding(3, 4).apply({"params": TABLE}, LABELS)
  np.testing.assert_array_equal(out, TABLE["table"][[0, 2, 3, 1, 3]])


def test_only_the_classes_seen_learn():
  loss = lambda params: LabelEmbedding(3, 4).apply({"params": params}, jnp.array([1, -1])).sum()
  np.testing.assert_array_equal(jax.grad(loss)(TABLE)["table"][:, 0], [0, 1, 0, 1])
