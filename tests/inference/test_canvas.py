"""Pictures of any size, with alpha or without, there and back."""

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.inference import canvas
from jldm.inference.model import build_model
from tests.configs import config, shrunk

MODEL = build_model(shrunk(config("fashion_mnist")))  # factor 4, patches of 2
UNET = build_model(shrunk(config("celeba_hq_256")))
RANDOM = np.random.default_rng(0)


def random(*shape):
  return RANDOM.integers(0, 256, shape, np.uint8)


def test_the_smallest_side_that_a_model_can_halve():
  assert canvas.side_multiple(MODEL) == 8
  assert canvas.side_multiple(UNET) == UNET.codec.factor * 2 ** (len(UNET.objective.network.widths) - 1)


@pytest.mark.parametrize("shape", [(2, 8, 16, 1), (1, 21, 27, 1), (1, 3, 40, 2)])
def test_there_and_back_is_the_picture_and_edges_are_repeated(shape):
  images = random(*shape)
  opened = canvas.open_canvas(MODEL, images)
  height, width = opened.images.shape[1:3]
  assert height % 8 == width % 8 == 0 and height - shape[1] < 8 and width - shape[2] < 8
  assert opened.model.latent_shape[:2] == (height // 4, width // 4)
  assert opened.inside.sum() == shape[1] * shape[2] and opened.inside[:, : shape[1], : shape[2]].all()
  np.testing.assert_array_equal(opened.images[:, -1, -1], opened.images[:, shape[1] - 1, shape[2] - 1])
  looks = lambda image: image[..., 0] * (image[..., 1] / 255) if shape[-1] == 2 else image
  tolerance = 1.01 if shape[-1] == 2 else 0  # two roundings
  np.testing.assert_allclose(looks(canvas.close_canvas(opened, opened.images)), looks(images), atol=tolerance)


def test_alpha_stays_and_colours_are_edited_over_white():
  images = np.array([[[[10, 255], [10, 0], [10, 51]]]], np.uint8)  # opaque, clear, a fifth
  opened = canvas.open_canvas(MODEL, images)
  assert opened.images[0, 0, :3, 0].tolist() == [10, 255, 206]
  black = canvas.close_canvas(opened, np.zeros_like(opened.images))
  assert black[0, 0].tolist() == [[0, 255], [10, 0], [0, 51]], (
    "where it is clear colours stay; darker than alpha lets is 0"
  )


def test_what_is_known_is_the_source_in_every_copy():
  images, known = random(2, 5, 6, 2), RANDOM.integers(0, 2, (2, 5, 6, 1)).astype(np.float32)
  opened = canvas.open_canvas(MODEL, images)
  edited = canvas.close_canvas(opened, random(6, 8, 8, 1), known)
  for i, image in enumerate(edited):
    there = known[i // 3, ..., 0] == 1
    np.testing.assert_array_equal(image[there], images[i // 3][there])
  assert edited.shape == (6, 5, 6, 2)


def test_grown_has_the_picture_within():
  images = random(1, 3, 4, 1)
  whole, known = canvas.extend_pictures(images, 1, 2, 3, 4)
  assert whole.shape == (1, 7, 10, 1) and known.sum() == 12
  np.testing.assert_array_equal(whole[:, 1:4, 4:8], images)
  np.testing.assert_array_equal(whole[:, 0, 4:8], images[:, 0])


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (
      lambda opened: canvas.open_canvas(MODEL, random(1, 8, 8, 3)),
      "expected uint8 [N, H, W, 1], or 2 with alpha",
    ),
    (lambda opened: canvas.open_canvas(MODEL, np.zeros((1, 8, 8, 1))), "pictures float64"),
    (lambda opened: canvas.open_canvas(MODEL, random(8, 8, 1)), "of shape [8, 8, 1]"),
    (
      lambda opened: canvas.check_known(opened, np.ones((5, 8))),
      "a mask of shape [1, 5, 8, 1] for pictures of 6x8",
    ),
    (lambda opened: canvas.check_known(opened, np.ones((6, 8))), "the mask is empty"),
    (lambda opened: canvas.check_known(opened, np.full((6, 8), 0.5)), "other values than 0 and 1"),
    (lambda opened: canvas.extend_pictures(random(1, 6, 8, 1), 0, 0, 0, 0), "margins 0,0,0,0"),
    (lambda opened: canvas.extend_pictures(random(1, 6, 8, 1), 1, -1, 0, 0), "margins 1,-1,0,0"),
  ],
)
def test_mistakes(call, message):
  with pytest.raises(UserError) as error:
    call(canvas.open_canvas(MODEL, random(1, 6, 8, 1)))
  assert message in str(error.value) and "\n" not in str(error.value)
