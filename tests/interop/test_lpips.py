"""Names and layouts of the lpips package; that the numbers are right, tests/metrics/test_perceptual.py
tells.
"""

import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.interop.lpips import CONVOLUTIONS, rename


def packaged(network: str = "alex") -> dict:
  """Names as in the package's state, with shapes shrunk to [2, 3, 1, 1]."""
  slices = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}
  rng, actual = np.random.default_rng(0), {"scaling_layer.shift": np.zeros((1, 3, 1, 1))}
  for place in CONVOLUTIONS[network]:
    actual[f"net.slice{slices[place]}.{place}.weight"] = rng.normal(size=(2, 3, 5, 4))
    actual[f"net.slice{slices[place]}.{place}.bias"] = rng.normal(size=2)
  for i in range(5):
    actual[f"lin{i}.model.1.weight"] = actual[f"lins.{i}.model.1.weight"] = rng.normal(size=(1, 2, 1, 1))
  return actual


def test_kernels_are_turned_and_constants_left_out():
  arrays = packaged()
  renamed = rename(arrays)
  assert set(renamed) == {f"conv{i}/{part}" for i in range(1, 6) for part in ("kernel", "bias")} | {
    f"head{i}/weight" for i in range(1, 6)
  }
  assert renamed["conv2/kernel"].shape == (5, 4, 3, 2)
  assert renamed["conv2/kernel"][4, 1, 2, 0] == arrays["net.slice2.3.weight"][0, 2, 4, 1]
  assert renamed["head5/weight"].tolist() == arrays["lin4.model.1.weight"].ravel().tolist()


def test_torchvisions_names_are_known_too():
  arrays = packaged()
  theirs = {
    name if name.startswith("lin") else "features." + name.split(".", 2)[2]: value
    for name, value in arrays.items()
    if "scaling" not in name
  } | {"classifier.1.weight": np.zeros((2, 2))}
  assert {name: value.tolist() for name, value in rename(theirs).items()} == {
    name: value.tolist() for name, value in rename(arrays).items()
  }


@pytest.mark.parametrize(
  "change, message",
  [
    (
      lambda arrays: arrays.pop("net.slice2.3.weight") is arrays.pop("net.slice2.3.bias"),
      r"at \[0, 6, 8, 10\]; expected",
    ),
    (lambda arrays: arrays.clear(), r"convolutions at \[\]"),
    (
      lambda arrays: arrays.update({"decoder.weight": np.zeros(2)}),
      "'decoder.weight' is not in the lpips package",
    ),
    (
      lambda arrays: arrays.update({"net.slice2.3.weight": np.zeros(2)}),
      r"net.slice2.3.weight is \[2\]; expected 4 axes",
    ),
  ],
)
def test_other_files_are_refused(change, message):
  arrays = packaged()
  change(arrays)
  with pytest.raises(UserError, match=message):
    rename(arrays)
