"""The transformers of DINOv2 and CLIP against transformers', reduced, and their pixels against Pillow's."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.interop.vit import rename
from jldm.metrics.extractors import clip, dino, vit
from jldm.metrics.extractors.extractor import find_extractor
from tests.networks import quick
from tests.parity.vit import CASES, PIXELS, PROJECTION, SIZES, noise, pictures, randomised

FIXTURE = np.load(Path(__file__).parents[2] / "parity" / "vit.npz")
MODULES = {"dinov2": dino, "clip": clip}
REDUCED = {
  "dinov2": dataclasses.replace(dino.NETWORK, **SIZES),
  "clip": dataclasses.replace(clip.NETWORK, **SIZES, projection=PROJECTION),
}


def theirs(kind: str) -> dict:
  return randomised(json.loads(str(FIXTURE[f"{kind}_shapes"])))


@functools.cache
def params(kind: str) -> dict:
  return vit.load_vit(REDUCED[kind], kind, rename(kind, theirs(kind)))


def apart(actual, expected) -> float:
  assert actual.shape == expected.shape and actual.dtype == np.float32
  return np.abs(actual - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("kind, case", [(kind, case) for kind, cases in PIXELS.items() for case in cases])
def test_features_are_transformers(kind, case):
  actual = quick(functools.partial(vit.extract_vit, REDUCED[kind]))(
    params(kind), noise((2, *PIXELS[kind][case], 3))
  )
  assert actual.logits is None
  assert apart(np.asarray(actual.features), FIXTURE[f"{kind}_{case}"]) < 2e-5


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("case", CASES)
def test_pixels_are_pillows(kind, case):
  each = MODULES[kind]
  actual = np.asarray(vit.preprocess_vit(pictures(CASES[case]), each.SIDE, each.MEAN, each.STD))
  assert actual.shape[1:] == (each.SIDE, each.SIDE, 3)
  assert apart(actual[:, ::13, ::11], FIXTURE[f"{kind}_{case}_seen"]) < 2e-5


def test_transformers_itself_rounds_them_to_bytes_on_each_axis():
  actual = np.asarray(vit.preprocess_vit(64 + pictures(CASES["small"]) // 2, clip.SIDE, clip.MEAN, clip.STD))[
    :, ::13, ::11
  ]
  assert np.abs(actual - FIXTURE["clip_processed"]).max() < 1.5 / 255 / min(clip.STD)


def test_grey_pictures_have_three_equal_channels():
  grey = pictures((1, 20, 20, 1))
  np.testing.assert_array_equal(
    vit.preprocess_vit(grey, 28, dino.MEAN, dino.STD),
    vit.preprocess_vit(np.repeat(grey, 3, 3), 28, dino.MEAN, dino.STD),
  )


@pytest.mark.parametrize(
  "kind, count, width", [("dinov2", 22_056_576 - 384, 384), ("clip", 304_293_888, 768)]
)
def test_the_published_size(kind, count, width):
  """Parameters as published, DINOv2's without its mask token; a picture of any size gives as many
  features.
  """
  network = MODULES[kind].NETWORK
  shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 14, 14, 3), np.float32))["params"]
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
  assert jax.eval_shape(
    find_extractor(kind).apply, shapes, np.zeros((2, 32, 20, 1), np.uint8)
  ).features.shape == (2, width)


def test_the_names_that_files_have():
  arrays = theirs("dinov2")
  assert "encoder.layer.0.attention.attention.query.weight" in arrays and "embeddings.mask_token" in arrays
  more = (
    "text_model.final_layer_norm.weight",
    "logit_scale",
    "text_projection.weight",
    "vision_model.embeddings.position_ids",
  )
  whole = theirs("clip") | {name: np.zeros(2) for name in more}
  assert rename("clip", whole).keys() == rename("clip", theirs("clip")).keys()


@pytest.mark.parametrize(
  "kind, change, message",
  [
    (
      "dinov2",
      {"pooler.weight": np.zeros(2)},
      "'pooler.weight' is not in dinov2 of transformers; expected embeddings.cls",
    ),
    (
      "clip",
      {"vision_model.encoder.layers.0.mlp.fc3.weight": np.zeros(2)},
      "'vision_model.encoder.layers.0.mlp.fc3.wei",
    ),
    (
      "clip",
      {"visual_projection.weight": np.zeros((2, 2, 2))},
      r"visual_projection.weight is \[2, 2, 2\]; expected 1 or 2",
    ),
    ("dinov2", {"encoder.layer.1.mlp.fc1.bias": None}, "block 1 of 2 has no in/bias"),
    ("dinov2", {"layernorm.bias": None}, "'norm_last/bias' is missing from the weights of 'dinov2'"),
  ],
)
def test_other_files_are_refused(kind, change, message):
  arrays = {name: value for name, value in (theirs(kind) | change).items() if value is not None}
  with pytest.raises(UserError, match=message):
    vit.load_vit(REDUCED[kind], kind, rename(kind, arrays))
