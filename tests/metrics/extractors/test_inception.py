"""The FID network against torch-fidelity's, block by block, on weights drawn from a seed."""

import functools
import json
from pathlib import Path

from flax import linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.interop.inception import rename
from jldm.metrics.extractors import inception
from tests.networks import quick
from tests.parity.inception import CASES, PLACES, SMALL, pictures, randomised, small

FIXTURE = np.load(Path(__file__).parents[2] / "parity" / "inception.npz")


@functools.cache
def params() -> dict:
  return inception.load_inception(rename(randomised(json.loads(str(FIXTURE["shapes"])))))


def close(actual, expected, most=2e-5):
  assert actual.shape == expected.shape and actual.dtype == jnp.float32
  assert np.abs(actual - expected).max() <= most * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_resized_as_tensorflow_did(case):
  actual = inception.preprocess_inception(pictures(CASES[case]))
  np.testing.assert_array_equal(actual[:, ::17, ::17], FIXTURE[f"{case}_resized"])


@pytest.mark.parametrize("name", SMALL)
def test_a_block_alone_is_torch_fidelitys(name):
  block = inception.InceptionBlock(inception.BLOCKS[name.lower()])
  close(
    quick(block.apply)({"params": params()[name.lower()]}, small(SMALL[name]))[..., ::7],
    FIXTURE[f"small_{name}"],
  )


@pytest.mark.slow  # 25 s on one core
def test_the_network_is_torch_fidelitys_block_by_block():
  pixels = inception.preprocess_inception(pictures(CASES["colour"]))
  run = quick(
    lambda params, pixels: inception.Inception().apply({"params": params}, pixels, capture_intermediates=True)
  )
  (features, logits), seen = run(params(), pixels)
  out = lambda name: seen["intermediates"][name]["__call__"][0]
  for name in inception.BLOCKS:
    close(out(name)[:, *PLACES], FIXTURE[f"colour_{name.capitalize()}"])
  for name, layer in (("conv2d_2b_3x3", "64"), ("conv2d_4a_3x3", "192")):
    close(nn.max_pool(out(name), (3, 3), (2, 2)).mean((1, 2)), FIXTURE[f"colour_{layer}"])
  close(out("mixed_6e").mean((1, 2)), FIXTURE["colour_768"])
  close(features, FIXTURE["colour_2048"])
  close(logits, FIXTURE["colour_logits_unbiased"])


@pytest.mark.slow  # 15 s on one core
def test_of_uint8_it_is_torch_fidelitys_too():
  features, logits = quick(inception.extract_inception)(params(), pictures(CASES["large"]))
  close(features, FIXTURE["large_2048"])
  close(logits, FIXTURE["large_logits_unbiased"])


def test_a_grey_picture_has_three_equal_channels():
  grey = pictures((1, 20, 20, 1))
  np.testing.assert_array_equal(
    inception.preprocess_inception(grey), inception.resize_bilinear(np.repeat(grey, 3, 3))
  )
