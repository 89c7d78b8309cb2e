"""The FID network's weights by the names of pytorch-fid and torch-fidelity, as ours.

Mixed_5b.branch5x5_1.conv.weight [out, in, h, w]  ->  mixed_5b/branch5x5_1/conv/kernel [h, w, in, out]
Mixed_5b.branch5x5_1.bn.running_var               ->  mixed_5b/branch5x5_1/variance
fc.weight [out, in]                               ->  fc/kernel [in, out]
"""

from collections.abc import Mapping
import re

import numpy as np

from jldm.core.errors import UserError

PARTS = {  # ours, axes as ours have them
  "conv.weight": ("conv/kernel", (2, 3, 1, 0)),
  "bn.weight": ("scale", (0,)),
  "bn.bias": ("bias", (0,)),
  "bn.running_mean": ("mean", (0,)),
  "bn.running_var": ("variance", (0,)),
  "weight": ("kernel", (1, 0)),
}
LAYER = re.compile(rf"((?:Mixed_\w+\.)?(?:Conv2d|branch)\w+|fc)\.({'|'.join(map(re.escape, PARTS))})")
LEFT_OUT = re.compile(r".*\.bn\.num_batches_tracked|fc\.bias")  # logits go without bias


def rename(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Their names and layouts -> ours.

  Raises:
    UserError: a name or a number of axes that is not theirs.
  """
  renamed = {}
  for name in arrays:
    if match := LAYER.fullmatch(name):
      value, (part, axes) = arrays[name], PARTS[match[2]]
      if value.ndim != len(axes):
        raise UserError(f"{name} is {list(value.shape)}; expected {len(axes)} axes")
      renamed[f"{match[1].replace('.', '/').lower()}/{part}"] = value.transpose(axes)
    elif not LEFT_OUT.fullmatch(name):
      raise UserError(
        f"{name[:80]!r} is not in the FID network; expected Conv2d_1a_3x3.conv.weight, fc.weight, …"
      )
  return renamed
