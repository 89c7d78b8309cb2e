import math

import jax.numpy as jnp
import numpy as np
import pytest

from jldm.nn.embedding import LevelEmbedding, grid_sinusoids, sinusoids
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
  np.testing.assert_allclose(LevelEmbedding(6, frequencies=4).apply({"params": params}, x), expected, atol=1e-4)
  half = LevelEmbedding(6, frequencies=4, dtype="bfloat16").apply({"params": params}, x)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.float32(half), expected, atol=0.03)
