"""Wrappers of a denoiser: transform(process, denoise) -> denoise."""

import dataclasses
from typing import Any

from jldm.core.trees import pytree
from jldm.diffusion.process import Process
from jldm.samplers.guidance import thresholded
from jldm.samplers.sample import Denoise


@pytree
@dataclasses.dataclass(frozen=True)
class Threshold:
  """Dynamic thresholding of x0 (`guidance.thresholded`): Saharia et al. 2022 (2205.11487), section 2.3."""

  dynamic_thresholding_ratio: Any = 0.995
  sample_max_value: Any = 1.0

  def __call__(self, process: Process, denoise: Denoise) -> Denoise:
    return thresholded(process, denoise, self.dynamic_thresholding_ratio, self.sample_max_value)
