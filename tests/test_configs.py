"""Every config builds at its own size, and trains two shrunk steps of both stages."""

import jax
import numpy as np
import pytest

from jldm.config import serialize
from jldm.core.trees import count
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.inference.model import build_model, codec_shapes, denoiser_shapes
from jldm.runs import validate
from jldm.runs.train import train
from tests.configs import OF_PUBLISHED, ROOT, config, shrunk, steps_of

NAMES = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {*OF_PUBLISHED})


# U-Nets that are traced for some ten seconds, and configs that others in seconds are like
LARGE = ("celeba_hq_256", "cifar10", "imagenet_256_unet", "photos_colour", "photos_kl", "folder")


@pytest.mark.parametrize(
  "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in NAMES]
)
def test_builds_as_shapes_and_as_data(name):
  experiment = config(name)
  assert serialize.loads(serialize.dumps(experiment)) == experiment
  model = build_model(experiment)
  validate.check_shapes(model, experiment.data)
  assert (count(codec_shapes(model)) > 1000) == model.codec.trained and count(denoiser_shapes(model)) > 1000


# The others compile for half a minute each.
SHIPPED = {"digits": [pytest.mark.as_shipped]}  # once more, as XLA optimizes it
SMOKE = [pytest.param(name, marks=[pytest.mark.slow, *SHIPPED.get(name, ())]) for name in NAMES]


@pytest.mark.parametrize("name", SMOKE)
def test_two_shrunk_steps_and_samples(name, tmp_path):
  experiment = shrunk(config(name))
  train(experiment, tmp_path / "w", devices=1)
  model, params = load(tmp_path / "w")
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
  data = experiment.data
  black = np.zeros((2, data.height, data.width, data.channels), np.uint8)
  given = {name: black for name, conditioner in model.conditioners.items() if not conditioner.dropout}
  images = generate(model, params, Request(n=2, given=given), steps_of(model, 2), devices=1).data
  assert images.shape == (2, data.height, data.width, data.channels) and images.dtype == np.uint8
