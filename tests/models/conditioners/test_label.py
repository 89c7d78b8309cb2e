import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.specs import spec
from jldm.models.conditioners.label import ClassLabel

LABEL = ClassLabel(classes=3)
DATA = spec(label=(np.int32, ()))
LABELS = np.array([0, 2, -1, 1], np.int32)


@pytest.mark.parametrize(
  "given", [LABELS, LABELS.tolist(), LABELS.astype(float)], ids=["int32", "list", "float"]
)
def test_what_is_read_is_what_is_drawn(given):
  read, drawn = LABEL.read_request(given, DATA), LABEL.draw_inputs({"label": LABELS, "image": None}, None)
  assert read.keys() == drawn.keys() == {"label"} and read["label"].dtype == drawn["label"].dtype
  np.testing.assert_array_equal(read["label"], drawn["label"])


def test_one_class_is_for_all():
  np.testing.assert_array_equal(LABEL.read_request(2, DATA)["label"], [2])


def test_null_is_the_unknown_class():
  condition = LABEL.embed({}, LABEL.read_request(LABELS, DATA), None)
  np.testing.assert_array_equal(condition["label"], LABELS)
  np.testing.assert_array_equal(LABEL.null({}, condition)["label"], [-1] * 4)


@pytest.mark.parametrize(
  "given, message",
  [
    (3, "label=3; expected -1 (unconditional) or 0 to 2"),
    ([0, -2], "label=-2; expected -1 (unconditional) or 0 to 2"),
    (0.5, "label=0.5; expected a whole number, or one per sample"),
    (np.nan, "label=nan; expected a whole number"),
    (np.inf, "label=inf; expected a whole number"),
    ("1", "label='1'; expected a whole number"),
    ([[1]], "label=[[1]]; expected a whole number"),
  ],
)
def test_what_is_not_legal_is_refused(given, message):
  with pytest.raises(UserError) as error:
    LABEL.read_request(given, DATA)
  assert message in str(error.value)


def test_no_classes_are_no_label():
  with pytest.raises(
    UserError, match=r"ClassLabel\(classes=0\); expected at least 1, or no ClassLabel among"
  ):
    ClassLabel(classes=0)
