"""LPIPS weights of the authors' PyTorch package, or of torchvision's backbone with the package's heads, as
ours.

Convolutions [out, in, k, k] become [k, k, in, out] and the 1x1 heads [1, C, 1, 1] vectors [C]; the
constant scaling and the package's second name of each head are left out.
"""

from collections.abc import Mapping
import re

import numpy as np

from jldm.core.errors import UserError

CONVOLUTIONS = {  # places in torchvision's `features`, which the package keeps in its names
  "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
  "alex": (0, 3, 6, 8, 10),
}
LEFT_OUT = re.compile(r"scaling_layer\.(shift|scale)|lins\.\d\.model\.1\.weight|classifier\..*|avgpool\..*")
BACKBONE = re.compile(r"(?:net\.slice\d|features)\.(\d+)\.(weight|bias)")
HEAD = re.compile(r"lin(\d)\.model\.1\.weight")


def rename(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Their names and layouts -> ours.

  Raises:
    UserError: a name that is not theirs, or a backbone that is none of CONVOLUTIONS.
  """
  backbone = {name: match for name in arrays if (match := BACKBONE.fullmatch(name))}
  places = sorted({int(match[1]) for match in backbone.values()})
  network = next((name for name, known in CONVOLUTIONS.items() if list(known) == places), None)
  if network is None:
    raise UserError(
      f"a backbone with convolutions at {places}; expected those of {' or '.join(CONVOLUTIONS)}"
    )
  renamed = {}
  for name in arrays:
    if name in backbone:
      value, (place, part) = arrays[name], backbone[name].groups()
      kernel = part == "weight"
      check_axes(name, value, 4 if kernel else 1)
      renamed[f"conv{places.index(int(place)) + 1}/{'kernel' if kernel else 'bias'}"] = (
        value.transpose(2, 3, 1, 0) if kernel else value
      )
    elif match := HEAD.fullmatch(name):
      value = arrays[name]
      check_axes(name, value, 4)
      renamed[f"head{int(match[1]) + 1}/weight"] = value.reshape(-1)
    elif not LEFT_OUT.fullmatch(name):
      raise UserError(
        f"{name[:80]!r} is not in the lpips package; expected net.slice1.0.weight, lin0.model.1.weight, …"
      )
  return renamed


def check_axes(name: str, value: np.ndarray, axes: int) -> None:
  if value.ndim != axes:
    raise UserError(f"{name} is {list(value.shape)}; expected {axes} axes")
