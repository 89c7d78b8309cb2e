"""Requests of a model whose latents are in parts: some given, some drawn, some unknown."""

import dataclasses

import jax
import numpy as np
import pytest

from jldm.config.experiment import Sampling
from jldm.core.errors import UserError
from jldm.diffusion.process import Flow
from jldm.diffusion.target import Precondition, Predict
from jldm.inference import edit
from jldm.inference.generate import Request, generate
from jldm.inference.model import Model, denoiser_shapes
from jldm.models.conditioners.vector import Vector
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.ddim import DDIM
from jldm.samplers.guidance import ClassifierFree
from tests.joint import CODEC, DATA, LETTERS, Both, examples
from tests.networks import randomised

OBJECTIVE = Diffusion(network=Both(width=8), process=Flow(), parametrization=Predict("x0"))
SAMPLING = Sampling(sampler=DDIM(), steps=3, guidance=ClassifierFree(2.0))
MODEL = Model(CODEC, OBJECTIVE, DATA, SAMPLING)
PARAMS = randomised(denoiser_shapes(MODEL), scale=0.5) | {"codec": CODEC.init(jax.random.key(0))}
SHAPES = {"image": (2, 4, 1), "text": (5,)}
IDS = examples(np.arange(4))["caption"]


def drawn(n: int = 4, model: Model = MODEL, **fields):
  return generate(model, PARAMS, Request(n=n, **fields), devices=1).data


def test_all_parts_are_drawn_in_the_dtypes_of_the_data():
  data = drawn(estimates=2)
  assert {name: part.shape[1:] for name, part in data.items()} == SHAPES and len(data["text"]) == 4
  assert all(part.dtype == np.uint8 for part in data.values()) and data["text"].max() < LETTERS
  samples = generate(MODEL, PARAMS, Request(n=2, estimates=2), devices=1)
  assert {name: part.shape for name, part in samples.estimates.items()} == {
    name: (2, 2, *shape) for name, shape in SHAPES.items()
  }


def test_the_other_part_is_drawn_under_a_given_one():
  data = drawn(given={"text": IDS})
  assert data.keys() == {"image"} and data["image"].shape == (4, 2, 4, 1)
  other, unknown = drawn(given={"text": IDS[::-1]}), drawn(given={"text": None})
  assert (data["image"] != other["image"]).any((1, 2, 3))[1:3].all() and (
    data["image"] != unknown["image"]
  ).any()
  np.testing.assert_array_equal(
    drawn(given={"text": IDS[0]})["image"][0], data["image"][0]
  )  # one caption for all
  assert drawn(given={"image": examples(np.arange(4))["image"]}).keys() == {"text"}


def test_samples_depend_on_their_rows_alone():
  whole = drawn(given={"text": IDS})["image"]
  few = drawn(2, given={"text": IDS[2:]}, rows=np.arange(2, 4))["image"]
  assert np.abs(np.int32(few) - whole[2:]).max() <= 1
  by_two = generate(MODEL, PARAMS, Request(n=4, given={"text": None}), devices=1, batch_size=2).data["image"]
  assert np.abs(np.int32(by_two) - drawn(given={"text": None})["image"]).max() <= 1, (
    "the noise of what is unknown too"
  )


def test_noise_is_the_ravel_of_what_is_drawn():
  noise = np.zeros((1, 8 + 5 * LETTERS), np.float32)
  assert drawn(1, noise=noise)["image"].shape == (1, 2, 4, 1)
  with pytest.raises(UserError, match=r"noise of shape \[1, 23\]; expected \[1, 8\], standard normal"):
    drawn(1, noise=noise, given={"text": IDS[:1]})


@pytest.mark.parametrize(
  "given, message",
  [
    ({"sound": 1}, "'sound' is given, and the model knows image, text"),
    ({"text": IDS[0, :3]}, r"text: caption is uint8 \[1, 3\]; expected uint8 \[5\] or \[n, 5\]"),
    ({"text": np.zeros(5)}, r"text: caption is float64 \[1, 5\]; expected uint8 \[5\] or \[n, 5\]"),
    ({"text": IDS[:3]}, "3 values of 'text' for 4 samples; expected one, or one per sample"),
  ],
)
def test_what_cannot_be_given(given, message):
  with pytest.raises(UserError, match=message):
    drawn(given=given)


def test_parts_are_not_held_where_the_network_says_nothing():
  singular = dataclasses.replace(
    MODEL, objective=dataclasses.replace(OBJECTIVE, parametrization=Precondition())
  )
  singular = dataclasses.replace(singular, sampling=dataclasses.replace(SAMPLING, sampler=DDIM()))
  with pytest.raises(
    UserError, match=r"Precondition\(.*\) (has no finite noise level|says nothing about the data) at t = "
  ):
    drawn(given={"text": IDS}, model=singular)


def test_samples_that_are_not_finite_are_refused():
  """Bytes would hide it: the codec's finished data have no NaN."""
  broken = jax.tree.map(lambda x: np.full(x.shape, np.nan, np.float32), PARAMS["denoiser"])
  with pytest.raises(ValueError, match="4 of 4 samples have values that are not finite"):
    generate(MODEL, PARAMS | {"denoiser": broken}, Request(n=4), devices=1)


def test_edits_need_one_array():
  with pytest.raises(
    UserError, match="latents are parts image, text; expected a model with one array, or use generate"
  ):
    edit.image_to_image(MODEL, PARAMS, examples(np.arange(2))["image"])


def test_a_conditioner_cannot_have_the_name_of_a_part():
  named = dataclasses.replace(OBJECTIVE, conditioners=(Vector(name="text", field="caption"),))
  with pytest.raises(
    UserError, match="'text' is a part of the latents and a conditioner; give the conditioner another name"
  ):
    drawn(model=dataclasses.replace(MODEL, objective=named))
