"""Sets of features as metrics take them."""

import numpy as np

from jldm.core.errors import UserError


def checked(*sets: np.ndarray) -> tuple[np.ndarray, ...]:
  """Each [N, D] in float64.

  Raises:
    UserError: of another rank, of fewer than two rows, of different widths, or with a value that is not finite.
  """
  sets = tuple(np.asarray(features, np.float64) for features in sets)
  shapes = " and ".join(str(list(features.shape)) for features in sets)
  if any(features.ndim != 2 or len(features) < 2 for features in sets):
    raise UserError(f"features of shape {shapes}; expected [N, D] with at least 2 rows")
  if len({features.shape[1] for features in sets}) > 1:
    raise UserError(f"features of shapes {shapes}; expected those of one extractor, of one width")
  if not all(np.isfinite(features).all() for features in sets):
    raise UserError("features that are not finite; the images or the extractor's weights are broken")
  return sets
