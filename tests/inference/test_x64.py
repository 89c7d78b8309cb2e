"""With JAX_ENABLE_X64=1 parameters and samples are float32 by their own word, and the bits are the same."""

import jax
import numpy as np
import pytest

from jldm.core.trees import named_leaves
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.inference.model import StagePlace, frozen_shapes, result_shapes, trained_shapes
from tests.configs import config, shrunk, steps_of
from tests.marks import slow_after


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize(
  "name", slow_after(2, ["digits", "photos_vq", "fashion_inpaint", "imagenet_256_unet"])
)
def test_every_parameter_states_its_dtype(x64, name):
  experiment = shrunk(config(name))
  for stage in experiment.stages:
    at = StagePlace(experiment, stage)
    trees = trained_shapes(at, frozen_shapes(at)), result_shapes(at).params
    wide = [name for name, leaf in named_leaves(trees).items() if leaf.dtype in (np.float64, np.int64)]
    assert not wide


@pytest.mark.slow
def test_samples_of_a_workdir_are_the_same(unbroken):
  def drawn():
    model, params = load(unbroken)
    request = Request(n=2, seed=3, given={"label": np.array([1, 2])})
    return generate(model, params, request, steps_of(model, 2), devices=1).data, params

  images, params = drawn()
  with jax.enable_x64(True):
    wide, wide_params = drawn()
  np.testing.assert_array_equal(images, wide)
  for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(wide_params), strict=True):
    assert old.dtype == new.dtype == np.float32
