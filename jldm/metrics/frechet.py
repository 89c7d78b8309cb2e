"""The Fréchet distance between two sets of features, each taken for a Gaussian: Heusel et al. 2017
(1706.08500), eq. 6.

  (1)  d^2 = |m - m'|^2 + tr C + tr C' - 2 tr (C C')^(1/2)
  (2)  tr (C C')^(1/2) = sum of the singular values S of A^T B = U S V^T,   C = A A^T,  C' = B B^T
  (3)  f(x) = |x - m|^2 - |P (x - m')|^2,   P = S^(-1/2) U^T A^T
       is, but for a constant, what a sample x of C' adds to d^2: P^T P transports the Gaussian of C' to that
       of C, and
       d^2 is (I - P^T P) in its derivative by C' (Rippl, Munk & Sturm 2016, 1507.04090, theorem 2.1)
  (4)  means and scatters of two parts merge exactly: Chan, Golub & LeVeque 1979, eq. 1.5

The roots A and B come from the eigenvalues of symmetric matrices.  For N samples d^2 is too large by an
amount that falls with 1 / N (Chong & Forsyth 2020, 1911.07023): compare values of the same N only, and
with the value of real pictures against real pictures.
"""

import math
from typing import NamedTuple

import numpy as np

from jldm.core.errors import UserError
from jldm.metrics.features import check_features
from jldm.metrics.intervals import ConfidenceInterval, normal_interval


class Moments(NamedTuple):
  """Mean [D] and covariance [D, D] of features, float64, of how many, and of which extractor.

  `source` says what made the features, preprocessing and weights included: only moments of one
  source are compared.
  """

  mean: np.ndarray
  covariance: np.ndarray
  count: float = math.inf  # a Gaussian that is known
  source: str = ""


class Running(NamedTuple):
  """Moments of features that come in parts; `add` and `merge` return the sum."""

  source: str = ""
  count: int = 0
  mean: np.ndarray | float = 0.0
  scatter: np.ndarray | float = 0.0  # sum of (x - mean) (x - mean)^T

  def add(self, features: np.ndarray) -> "Running":
    """With features [N, D] too; UserError where they are not finite or of another width."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or (self.count and features.shape[1:] != np.shape(self.mean)):
      raise UserError(
        f"features of shape {features.shape}; expected [N, {len(self.mean) if self.count else 'D'}]"
      )
    if not np.isfinite(features).all():
      raise UserError("features that are not finite; the images or the extractor's weights are broken")
    if not len(features):
      return self
    mean = features.mean(0)
    centred = features - mean
    return self.merge(Running(self.source, len(features), mean, centred.T @ centred))

  def merge(self, other: "Running") -> "Running":
    """(4), of what another process has added; UserError where that has another source or width."""
    check_comparable(self, other)
    count = self.count + other.count
    if not (self.count and other.count):
      return self if self.count else other
    offset = other.mean - self.mean
    spread = np.outer(offset, offset) * (self.count * other.count / count)
    return Running(
      self.source, count, self.mean + offset * (other.count / count), self.scatter + other.scatter + spread
    )

  def moments(self) -> Moments:
    """The covariance over N - 1; UserError of fewer than two."""
    if self.count < 2:
      raise UserError(f"features of {self.count} images; expected at least 2 rows for a covariance")
    return Moments(self.mean, self.scatter / (self.count - 1), self.count, self.source)


def feature_moments(features: np.ndarray, source: str = "") -> Moments:
  """Features [N, D] -> their moments, the covariance over N - 1.

  Raises:
    UserError: fewer than two rows, another rank, or a value that is not finite.
  """
  (features,) = check_features(features)
  return Running(source).add(features).moments()


def check_comparable(a: Moments | Running, b: Moments | Running) -> None:
  """Raises a UserError unless both are of one extractor, with one preprocessing and one width."""
  if a.source != b.source:
    raise UserError(
      f"features of {a.source!r} and of {b.source!r} do not compare; make both with one extractor"
    )
  if a.count and b.count and a.mean.shape != b.mean.shape:
    raise UserError(f"features of widths {len(a.mean)} and {len(b.mean)}; expected those of one extractor")


def matrix_root(covariance: np.ndarray) -> np.ndarray:
  """A [D, D] with A A^T = covariance; eigenvalues below zero are rounding and count as zero."""
  values, vectors = np.linalg.eigh(covariance)
  return vectors * np.sqrt(np.maximum(values, 0))


def check_moments(a: Moments, b: Moments) -> None:
  """Raises a UserError if the distance of a and b would mean nothing."""
  check_comparable(a, b)
  width = len(a.mean)
  if min(a.count, b.count) <= width:
    raise UserError(
      f"{min(a.count, b.count)} images for features of width {width}: their covariance is singular, and "
      f"the Fréchet "
      f"distance means nothing; expected more than {width} images, or a kernel distance"
    )


def squared_distance(a: Moments, b: Moments, singular: np.ndarray) -> float:
  """(1), given the singular values of (2)."""
  offset = a.mean - b.mean
  return float(offset @ offset + np.trace(a.covariance) + np.trace(b.covariance) - 2 * singular.sum())


def frechet(a: Moments, b: Moments) -> float:
  """(1), the squared distance, as it is usually quoted.

  Raises:
    UserError: moments of different extractors or widths, or of no more images than features are wide.
  """
  check_moments(a, b)
  return squared_distance(
    a, b, np.linalg.svd(matrix_root(a.covariance).T @ matrix_root(b.covariance), compute_uv=False)
  )


def frechet_interval(real: np.ndarray, samples: np.ndarray, level: float = 0.95) -> ConfidenceInterval:
  """(1) of features [N, D] and [M, D], and where it would lie, were both sets drawn anew in the same numbers.

  The interval is the first-order spread of (3), valid for d^2 well above zero.  It does not cover the bias,
  which is the same every time.  A bootstrap would add that bias once more, since it repeats images.

  Raises:
    UserError: as `frechet`.
  """
  real, samples = check_features(real, samples)
  a, b = feature_moments(real), feature_moments(samples)
  check_moments(a, b)
  A, B = matrix_root(a.covariance), matrix_root(b.covariance)
  U, S, Vt = np.linalg.svd(A.T @ B)
  keep = S[0] * len(S) * np.finfo(np.float64).eps < S
  gain = S[keep] ** -0.5
  adds = lambda x, of_own, of_other, P: (
    np.square(x - of_other.mean).sum(1) - np.square((x - of_own.mean) @ P).sum(1)
  )
  terms = adds(samples, b, a, A @ U[:, keep] * gain), adds(real, a, b, B @ Vt[keep].T * gain)
  return normal_interval(squared_distance(a, b, S), *terms, level=level)
