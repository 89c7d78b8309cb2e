import jax
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.specs import spec
from jldm.models.conditioners.vector import Vector

POSE = Vector(field="pose", name="camera", scale=2.0)
DATA = spec(pose=(np.float32, (3,)), age=(np.float32, ()))
VALUES = np.float32([[1, 2, 3], [-1, 0, 0.5], [4, np.nan, 6], [np.inf, 0, 0]])


def embedded(vector, inputs):
  return np.asarray(vector.embed({}, inputs, None)["vector"])


def test_what_is_read_is_what_is_drawn():
  read, drawn = POSE.read_request(VALUES.tolist(), DATA), POSE.draw_inputs({"pose": VALUES}, None)
  assert read.keys() == drawn.keys() and read["values"].dtype == drawn["values"].dtype
  np.testing.assert_array_equal(read["values"], drawn["values"])
  np.testing.assert_array_equal(POSE.read_request(VALUES[0], DATA)["values"], VALUES[:1])


def test_one_number_per_example():
  age = Vector(field="age")
  drawn = age.draw_inputs({"age": VALUES[:, 0]}, None)["values"]
  np.testing.assert_array_equal(drawn, VALUES[:, :1])
  np.testing.assert_array_equal(age.read_request(VALUES[:, :1], DATA)["values"], drawn)
  np.testing.assert_array_equal(age.read_request(4, DATA)["values"], [[4]])


def test_values_are_scaled_and_a_channel_says_that_they_are_known():
  condition = embedded(POSE, {"values": VALUES})
  np.testing.assert_array_equal(condition[:2], [[2, 4, 6, 1], [-2, 0, 1, 1]])
  zeros = embedded(POSE, {"values": np.zeros((1, 3), np.float32)})
  assert zeros.any(), "zeros that are known are not null"


def test_what_is_not_finite_is_unknown_and_unknown_is_null():
  condition = embedded(POSE, {"values": VALUES})
  null = POSE.null({}, {"vector": condition})["vector"]
  np.testing.assert_array_equal(condition[2:], null[2:])
  slope = jax.grad(lambda values: POSE.embed({}, {"values": values}, None)["vector"].sum())(VALUES)
  np.testing.assert_array_equal(slope, [[2, 2, 2]] * 2 + [[0, 0, 0]] * 2)


@pytest.mark.parametrize(
  "given, message",
  [
    ([1, 2], "camera of shape [2]; expected 3 numbers, or [n, 3]"),
    (np.ones((3, 2)), "camera of shape [3, 2]; expected 3 numbers, or [n, 3]"),
    (np.ones((2, 3, 1)), "camera of shape [2, 3, 1]; expected 3 numbers"),
    ("left", "camera='left'; expected 3 numbers, or [n, 3]"),
  ],
)
def test_what_is_not_legal_is_refused(given, message):
  with pytest.raises(UserError) as error:
    POSE.read_request(given, DATA)
  assert message in str(error.value)


def test_a_field_that_the_data_lacks_is_named():
  with pytest.raises(
    UserError, match="conditioner 'camera' reads 'pose', and the data has image, label; expected one of those"
  ):
    POSE.draw_inputs({"label": None, "image": None}, None)
