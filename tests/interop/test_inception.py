"""Names and layouts of pytorch-fid; that the numbers are right,
tests/metrics/extractors/test_inception.py tells.
"""

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.interop.inception import rename


def published() -> dict:
  rng = np.random.default_rng(0)
  layers = [
    f"{layer}.{part}"
    for layer in ("Conv2d_1a_3x3", "Mixed_5b.branch5x5_1")
    for part in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  ]
  return {name: rng.normal(size=4) for name in layers} | {
    "Conv2d_1a_3x3.conv.weight": rng.normal(size=(4, 3, 5, 2)),
    "Conv2d_1a_3x3.bn.num_batches_tracked": np.zeros((), np.int64),
    "Mixed_5b.branch5x5_1.conv.weight": rng.normal(size=(4, 3, 1, 1)),
    "fc.weight": rng.normal(size=(6, 4)),
    "fc.bias": np.zeros(6),
  }


def test_names_and_axes():
  arrays = published()
  renamed = rename(arrays)
  parts = ("conv/kernel", "scale", "bias", "mean", "variance")
  layers = ("conv2d_1a_3x3", "mixed_5b/branch5x5_1")
  assert set(renamed) == {f"{layer}/{part}" for layer in layers for part in parts} | {"fc/kernel"}
  assert renamed["conv2d_1a_3x3/conv/kernel"].shape == (5, 2, 3, 4)
  assert renamed["conv2d_1a_3x3/conv/kernel"][4, 1, 2, 3] == arrays["Conv2d_1a_3x3.conv.weight"][3, 2, 4, 1]
  np.testing.assert_array_equal(
    renamed["mixed_5b/branch5x5_1/variance"], arrays["Mixed_5b.branch5x5_1.bn.running_var"]
  )
  np.testing.assert_array_equal(renamed["fc/kernel"], arrays["fc.weight"].T)


@pytest.mark.parametrize(
  "name, value, message",
  [
    ("AuxLogits.fc.weight", np.zeros((2, 2)), "'AuxLogits.fc.weight' is not in the FID network"),
    ("fc.weight", np.zeros(2), r"fc.weight is \[2\]; expected 2 axes"),
  ],
)
def test_other_files_are_refused(name, value, message):
  with pytest.raises(UserError, match=message):
    rename(published() | {name: value})
