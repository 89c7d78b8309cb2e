"""Every recipe is an experiment that builds; its score is of what is given, not of how it was made."""

import numpy as np
import pytest

from benchmarks import recipes
from jldm.inference.model import build_model as model_of
from jldm.metrics.frechet import feature_moments
from jldm.runs import validate
from tests.marks import slow_after


@pytest.mark.parametrize("name", slow_after(2, recipes.DENOISERS))
def test_a_recipe_builds(name):
  of, settings = recipes.DENOISERS[name]
  actual = recipes.experiment(recipes.SEARCH + recipes.AUTOENCODERS[of] + settings)
  validate.check_shapes(model_of(actual), actual.data)


@pytest.fixture
def reference():
  images = np.random.default_rng(0).integers(0, 256, (140, 28, 28, 1), np.uint8)
  made = object.__new__(recipes.Reference)
  made.images, made.labels, made.features = (
    images,
    np.arange(140) % 10,
    recipes.fashion.fashion_features(images),
  )
  made.moments = feature_moments(made.features)
  return made


def test_the_reference_itself_scores_full_marks(reference):
  score = reference.score(reference.images, recipes.fashion.classify(reference.images))
  assert abs(score["frechet"]) < 1e-6 * np.trace(reference.moments.covariance)
  assert score["precision"] == score["recall"] == score["coverage"] == score["agreement"] == 1


def test_other_pictures_score_less(reference):
  score = reference.score(np.zeros((140, 32, 32, 1), np.uint8), np.zeros(140))
  assert score["frechet"] > 1e-3 and score["recall"] < 0.5


def test_a_row_has_a_cell_a_column():
  scores = {
    "recipe": "a",
    "autoencoder": "f4",
    "psnr": 25.0,
    "reconstruction": 1.0,
    "autoencoder_steps": 10,
    "seconds": 3.0,
  }
  assert (
    recipes.row(scores).count("|")
    == recipes.HEAD.splitlines()[0].count("|")
    == recipes.HEAD.splitlines()[1].count("|")
  )


def test_what_is_kept_is_made_once(tmp_path):
  made = []

  def make():
    made.append(len(made))
    return {"seconds": 1.5}, np.full((2, 4, 4, 1), made[-1], np.uint8)

  for _ in range(2):
    scores, images = recipes.kept(tmp_path / "it's, seed 0", make)
    assert scores == {"seconds": 1.5} and images.shape == (2, 4, 4, 1) and not images.any()
  assert made == [0]
