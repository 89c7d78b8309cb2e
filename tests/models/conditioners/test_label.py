import jax
import jax.numpy as jnp
import numpy as np

from jldm.models.conditioners.label import LabelEmbedding
from tests.networks import random_params

LABELS = jnp.array([0, 2, -1, 1, -1])
PARAMS = random_params(LabelEmbedding(3, 4), LABELS)


def test_one_vector_a_class_and_one_for_the_unknown():
  assert PARAMS["table"].shape == (4, 4)
  out = LabelEmbedding(3, 4).apply({"params": PARAMS}, LABELS)
  np.testing.assert_array_equal(out, PARAMS["table"][[0, 2, 3, 1, 3]])


def test_only_the_classes_seen_learn():
  loss = lambda params: LabelEmbedding(3, 4).apply({"params": params}, jnp.array([1, -1])).sum()
  np.testing.assert_array_equal(jax.grad(loss)(PARAMS)["table"][:, 0], [0, 1, 0, 1])
