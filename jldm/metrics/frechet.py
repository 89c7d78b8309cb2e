"""The Fréchet distance between two sets of features, each taken for a Gaussian: Heusel et al. 2017 (1706.08500), eq. 6.

  (1)  d^2 = |m - m'|^2 + tr C + tr C' - 2 tr (C C')^(1/2)
  (2)  tr (C C')^(1/2) = sum of the singular values of A^T B,   C = A A^T,  C' = B B^T

The roots A and B come of the eigenvalues of symmetric matrices, so that neither covariance need be of full rank.  Of N
samples the distance is too large by an amount that falls with 1 / N: compare figures of one N only.
"""

from typing import NamedTuple

import numpy as np

from jldm.core.errors import UserError


class Moments(NamedTuple):
  """Mean [D] and covariance [D, D] of features, float64."""

  mean: np.ndarray
  covariance: np.ndarray


def statistics(features: np.ndarray) -> Moments:
  """Features [N, D] -> their moments, the covariance over N - 1.

  Raises:
    UserError: fewer than two rows, another rank, or a value that is not finite.
  """
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or len(features) < 2:
    raise UserError(f"features of shape {features.shape}; expected [N, D] with at least 2 rows")
  if not np.isfinite(features).all():
    raise UserError("features that are not finite; the images or the extractor's weights are broken")
  mean = features.mean(0)
  centred = features - mean
  return Moments(mean, centred.T @ centred / (len(features) - 1))


def root(covariance: np.ndarray) -> np.ndarray:
  """A [D, D] with A A^T = covariance; eigenvalues below zero are rounding and count as zero."""
  values, vectors = np.linalg.eigh(covariance)
  return vectors * np.sqrt(np.maximum(values, 0))


def frechet(a: Moments, b: Moments) -> float:
  """(1), the squared distance, as it is usually quoted.

  Raises:
    UserError: features of different widths.
  """
  if a.mean.shape != b.mean.shape:
    raise UserError(f"features of widths {len(a.mean)} and {len(b.mean)}; expected those of one extractor")
  product = np.linalg.svd(root(a.covariance).T @ root(b.covariance), compute_uv=False).sum()
  offset = a.mean - b.mean
  return float(offset @ offset + np.trace(a.covariance) + np.trace(b.covariance) - 2 * product)
