"""What an evaluation takes where nobody chose, from the size of the pictures and their number."""

import dataclasses

import pytest

from jldm.config.experiment import Evaluation
from jldm.core.errors import UserError
from jldm.data.synthetic import Synthetic
from jldm.evaluation import choose
from jldm.evaluation.evaluate import EvaluationSettings
from jldm.evaluation.judge import USUAL
from tests.configs import config, shrunk

FREE = ("n", "metrics")


@pytest.mark.parametrize(
  ("shape", "extractor"),
  [
    ((28, 28, 1), "fashion"),
    ((32, 32, 1), "fashion"),
    ((8, 8, 1), "pixels"),
    ((64, 64, 1), "pixels"),
    ((32, 32, 3), "pixels"),
    ((64, 64, 3), "pixels"),
  ],
)
def test_the_extractor_fits_the_pictures(shape, extractor):
  assert choose.choose_extractor(shape) == extractor


@pytest.mark.parametrize(
  ("train", "held_out", "n"),
  [(55_000, 5_000, 1000), (1707, 90, 853), (285, 15, 142), (200, 150, 150), (45, 2, 22), (30, 1, 20)],
)
def test_samples_are_as_many_as_there_are_real_pictures_to_compare_with(train, held_out, n):
  assert choose.choose_n(1000, train, held_out) == n


def fitted(free, side=16, channels=3, count=160, evaluation=None, **settings):
  experiment = shrunk(config("digits"))
  data = Synthetic(height=side, width=side, channels=channels, count=count)
  experiment = dataclasses.replace(experiment, data=data, evaluation=evaluation or Evaluation())
  return choose.fit_to_data(experiment, EvaluationSettings(**settings), free)


def test_what_nobody_gave_is_chosen_and_said_in_one_line():
  loaded, settings, line = fitted(FREE)
  assert loaded.definition.name == "pixels" and settings.n == 160
  assert settings.metrics == tuple(name for name in USUAL if name != "frechet")
  assert settings.left_out == {"frechet": "160 pictures are too few for features of width 192"}
  assert "--extractor pixels for pictures of 16x16x3" in line and "\n" not in line
  assert "--n 160 since 160 pictures are held out and 160 trained on" in line
  assert f"--metrics {','.join(settings.metrics)} since 160 pictures are too few" in line


def test_enough_pictures_of_a_named_extractor_need_no_line():
  _, settings, line = fitted(FREE, channels=1, evaluation=Evaluation(extractor="pixels"), n=100)
  assert line == "" and settings.n == 100 and settings.metrics == USUAL and not settings.left_out


def test_what_somebody_gave_stays():
  _, settings, line = fitted(("metrics",), n=30)
  assert settings.n == 30 and "--n" not in line and "frechet" not in settings.metrics
  _, settings, line = fitted(("n",), metrics=("frechet",))
  assert settings.metrics == ("frechet",) and settings.n == 160 and "--metrics" not in line
  loaded, settings, line = fitted((), 32, 1, evaluation=Evaluation(extractor="pixels"), n=30)
  assert loaded.definition.name == "pixels" and settings.metrics == USUAL and line == ""


def test_weights_without_their_extractor_are_refused():
  with pytest.raises(UserError, match="no extractor is named"):
    fitted(FREE, evaluation=Evaluation(weights="w.safetensors"))
