"""Which pictures are compared, what is refused, and that figures tell good samples from bad."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.data.source import Arrays
from jldm.evaluation import judge as judging
from jldm.evaluation.features import Features
from jldm.evaluation.judge import measure_reconstructions
from jldm.metrics.image import psnr, ssim

IMAGES = np.float32(np.random.default_rng(0).uniform(-1, 1, (10, 12, 14, 1)))
worse = lambda images: jnp.clip(images + 0.1 * jnp.arange(1, 5)[:, None, None, None], -1, 1)
numbered = lambda n: Arrays({"image": np.arange(n)})


def test_every_image_that_counts():
  """Ten images in batches of four, the last one padded."""
  padded = np.concatenate([IMAGES[8:], IMAGES[:2]])
  batches = [(IMAGES[:4], 4), (IMAGES[4:8], 4), (padded, 2)]
  values, back = measure_reconstructions(worse, batches, lambda a, b: jnp.abs(a - b).max((1, 2, 3)))
  backs = np.concatenate([worse(images)[:count] for images, count in batches])
  assert values.keys() == {"psnr", "ssim", "lpips"}
  np.testing.assert_allclose(values["psnr"], psnr(IMAGES, backs), rtol=1e-5)
  np.testing.assert_allclose(values["ssim"], ssim(IMAGES, backs), rtol=1e-5)
  np.testing.assert_allclose(values["lpips"], np.abs(IMAGES - backs).max((1, 2, 3)), rtol=1e-5)
  np.testing.assert_allclose(back / 127.5 - 1, backs, atol=1 / 255)


def test_the_first_batch_without_its_padding():
  values, first = measure_reconstructions(worse, iter([(IMAGES[:4], 3), (IMAGES[4:8], 4)]), first_alone=True)
  assert len(first) == 3 and len(values["psnr"]) == 7


def test_real_pictures_are_held_out_ones_where_there_are_enough():
  sets = judging.choose_real_sets(numbered(50), numbered(30), 20, 40)
  assert (
    len(sets.reference.rows) == 40
    and sets.real.source is sets.held_out.source
    and len(set(sets.real.rows)) == 20
  )


def test_else_training_pictures_are_set_aside():
  sets = judging.choose_real_sets(numbered(50), numbered(10), 20, 100)
  assert sets.real.source is sets.reference.source and len(sets.held_out.rows) == 10
  assert sorted([*sets.reference.rows, *sets.real.rows]) == list(range(50)), "none is in both"
  with pytest.raises(
    UserError, match="n=50, but 10 pictures are held out and 50 trained on; expected at most 49"
  ):
    judging.choose_real_sets(numbered(50), numbered(10), 50, 100)


@pytest.mark.parametrize(
  ("labels", "n", "counts"),
  [([0, 0, 0, 1], 8, [6, 2]), ([0, 1, 2], 10, [4, 3, 3]), ([2, 2, -1, 0], 3, [1, 0, 2]), ([-1, -1], 2, [])],
)
def test_labels_in_proportion(labels, n, counts):
  actual = judging.proportional_labels(np.array(labels), n)
  assert len(actual) == n and np.bincount(actual[actual >= 0]).tolist() == counts


def clothes(n: int, seed: int, spread: float = 1.0, right: float = 0.9) -> Features:
  """Three classes, each a Gaussian of its own, and a classifier that is mostly right."""
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % 3
  features = 4 * np.eye(3, 6)[labels] + spread * rng.normal(size=(n, 6))
  seen = np.where(rng.random(n) < right, labels, (labels + 1) % 3)
  return Features(np.float32(features), np.float32(5 * np.eye(3)[seen]), np.int32(labels), "toy")


REFERENCE, REAL = clothes(400, 0), clothes(150, 1)


@pytest.fixture(scope="module")
def judge():
  return judging.make_judge(REFERENCE, REAL, tuple(judging.METRICS))


def test_figures_tell_good_samples_from_narrow_ones(judge):
  good, narrow = (judge.compare_with_real(clothes(150, 2, spread)) for spread in (1.0, 0.3))
  assert (
    good.keys()
    == narrow.keys()
    >= {
      "frechet",
      "kid",
      "cmmd",
      "precision",
      "recall",
      "density",
      "coverage",
      "agreement",
      "inception_score",
      "duplicates",
    }
  )
  for name, each in good.items():
    assert each["low"] <= each["value"] <= each["high"] and each["n"] == each["real"]["n"] == 150, name
  assert narrow["frechet"]["low"] > good["frechet"]["high"] > good["frechet"]["real"]["low"]
  assert (
    narrow["recall"]["high"] < good["recall"]["low"]
    and narrow["coverage"]["value"] < good["coverage"]["value"]
  )
  assert narrow["duplicates"]["value"] > 0.5 > 0.1 > good["duplicates"]["value"]
  assert good["agreement"]["real"]["value"] == pytest.approx(np.mean(REAL.logits.argmax(1) == REAL.labels))


def test_the_same_again(judge):
  assert judge.compare_with_real(clothes(150, 2)) == judge.compare_with_real(clothes(150, 2))


def test_a_class_that_is_missing_shows_in_its_recall(judge):
  samples = clothes(150, 2)
  features = np.where(samples.labels[:, None] == 1, samples.features[:1], samples.features)
  classes = judge.compare_classes(dataclasses.replace(samples, features=np.float32(features)))
  assert (
    classes.keys() == {"0", "1", "2"}
    and classes["1"]["recall"]["value"] < 0.1 < 0.5 < classes["0"]["recall"]["value"]
  )
  assert classes["1"]["agreement"]["n"] == 50


def test_a_class_of_few_pictures_is_not_judged(judge):
  few = clothes(27, 2)
  assert judge.compare_classes(few) == {}


def test_too_few_pictures_for_a_covariance_are_refused():
  with pytest.raises(
    UserError, match=r"6 pictures for features of width 6: .* expected --n above 6, or --metrics without"
  ):
    judging.make_judge(REFERENCE, REAL.take(slice(6)), ("frechet",))
  assert judging.make_judge(REFERENCE, REAL.take(slice(6)), ("kid",)).metrics == ("kid",)


def test_a_classifier_of_other_classes_does_not_judge():
  others = clothes(150, 1, right=0.2)
  actual = judging.make_judge(REFERENCE, others, ("agreement", "inception_score"))
  assert actual.metrics == ("inception_score",) and "its classes are others" in actual.left_out["agreement"]
  none = judging.make_judge(
    REFERENCE, dataclasses.replace(REAL, logits=np.zeros((150, 0))), ("agreement", "inception_score", "kid")
  )
  assert none.metrics == ("kid",) and set(none.left_out.values()) == {"the extractor is no classifier"}


def test_features_of_another_extractor_are_refused(judge):
  with pytest.raises(UserError, match=r"features of .other. do not compare with those of .toy."):
    judge.score(dataclasses.replace(REAL, source="other"))
