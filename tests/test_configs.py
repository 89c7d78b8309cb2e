"""Every config builds at its own size, and trains two shrunk steps of both stages."""

import jax
import numpy as np
import pytest

from jldm.config import serialize
from jldm.core.trees import count
from jldm.inference import pipeline
from jldm.runs import stages, validate
from tests.configs import ROOT, config, shrunk

NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_builds_as_shapes_and_as_data(name):
  experiment = config(name)
  assert serialize.loads(serialize.dumps(experiment)) == experiment
  model = pipeline.of(experiment)
  validate.check_shapes(model, experiment.data)
  assert count(pipeline.codec_shapes(model)) > 1000 and count(pipeline.denoiser_shapes(model)) > 1000


# The others compile for half a minute each.
SMOKE = [name if name == "digits" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


@pytest.mark.parametrize("name", SMOKE)
def test_two_shrunk_steps_and_samples(name, tmp_path):
  experiment = shrunk(config(name))
  stages.train(experiment, tmp_path / "w", devices=1)
  model, params = pipeline.load(tmp_path / "w")
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  data, concat = experiment.data, None
  if model.condition is not None:
    concat = np.zeros((2, *pipeline.concat_shape(model)))
  images = pipeline.generate(model, params, [-1, -1], steps=2, devices=1, concat=concat)
  assert images.shape == (2, data.height, data.width, data.channels) and images.dtype == np.uint8
