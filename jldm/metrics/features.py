"""Sets of features as metrics take them, and how far they are apart."""

from collections.abc import Iterator

import numpy as np

from jldm.core.errors import UserError

BLOCK = 5_000_000  # entries of a matrix of pairs that are made at once: 40 MB


def check_features(*sets: np.ndarray) -> tuple[np.ndarray, ...]:
  """Each [N, D] in float64.

  Raises:
    UserError: of another rank, of fewer than two rows, of different widths, or with a value that is
      not finite.
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


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
  """Slices of a matrix of pairs, of at most BLOCK entries each and at least a row."""
  size = max(BLOCK // columns, 1)
  return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
  """Squared distances of a [N, D] to b [M, D], as (rows of a, [rows, M]), in blocks, float64."""
  lengths = np.square(b).sum(1)
  for rows in row_blocks(len(a), len(b)):
    part = a[rows]
    yield rows, np.maximum(np.square(part).sum(1)[:, None] + lengths - 2 * part @ b.T, 0)
