import jax
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.specs import spec
from jldm.models.conditioners.sizes import Sizes

SIZES = Sizes(height=8, width=4, features=6)
DATA = spec(image=(np.uint8, (8, 4, 3)))
NO_KEYS = jax.random.split(jax.random.key(0), 2)
embed = lambda inputs: SIZES.embed({}, inputs, None)["vector"]


def test_a_picture_in_training_is_whole_and_of_its_own_size():
  inputs = SIZES.draw_inputs({"image": np.zeros((2, 8, 4, 3), np.uint8)}, NO_KEYS)
  np.testing.assert_array_equal(inputs["sizes"], [[8, 4, 0, 0, 8, 4]] * 2)
  vector = embed(inputs)
  assert vector.shape == (2, 36)
  np.testing.assert_array_equal(vector, embed(SIZES.read_request((8, 4), DATA)).repeat(2, 0))
  np.testing.assert_array_equal(SIZES.null({}, {"vector": vector})["vector"], vector)


def test_a_request_that_does_not_name_them_has_those_of_its_pictures():
  other = spec(image=(np.uint8, (16, 24, 3)))
  assert SIZES.default_request(DATA) == (8, 4) and SIZES.default_request(other) == (16, 24)


def test_height_comes_first_and_each_number_has_its_own_waves():
  one = embed(SIZES.read_request((5, 6, 1, 2, 7, 8), DATA)).reshape(6, 6)
  for i, number in enumerate((5, 6, 1, 2, 7, 8)):
    frequencies = 10_000.0 ** (-np.arange(3) / 3)
    wanted = np.concatenate([np.cos(number * frequencies), np.sin(number * frequencies)])
    np.testing.assert_allclose(one[i], wanted, atol=1e-6)


@pytest.mark.parametrize("given", [(1, 2, 3), "large", [(1, 2)], (1, 2, 3, 4, 5, np.nan)])
def test_other_numbers_are_refused(given):
  with pytest.raises(UserError, match=r"sizes=.*; expected \(height, width\), or original height and width"):
    SIZES.read_request(given, DATA)


def test_every_sample_may_have_its_own():
  assert SIZES.read_request([(1, 2, 3, 4, 5, 6)] * 3, DATA)["sizes"].shape == (3, 6)
