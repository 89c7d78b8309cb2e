"""Maximum mean discrepancies of features: whether two sets could be of one distribution, without a
Gaussian in between.

(1)  MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)    Gretton et al. 2012, JMLR 13, eq. 3: unbiased
where the
     pairs x, x' leave out an x with itself, else (eq. 5) too large by about 2 (1 - mean k) / N
(2)  k(x, y) = (x . y / D + 1)^3    KID, unbiased, a mean over subsets: Bińkowski et al. 2018 (1801.01401),
eq. 4
(3)  k(x, y) = exp(-|x - y|^2 / (2 sigma^2)),  |x| = |y| = 1,  sigma = 10, times 1000, eq. 5 of Gretton:
     CMMD, Jayasumana et al. 2024 (2401.09603), section 4 and the authors' code
(4)  g(x) = 2 (mean_y' k(x, y') over its own set - mean_y k(x, y)) is what a sample adds to (1), but
     for a constant
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jldm.core.errors import UserError
from jldm.metrics.features import check_features, row_blocks
from jldm.metrics.intervals import ConfidenceInterval, normal_interval

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


class MeanAndStd(NamedTuple):
  """Mean and standard deviation over parts of the samples; the latter is no interval of the former."""

  mean: float
  std: float


def cubic_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """(2) of [N, D] and [M, D] -> [N, M]."""
  return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian_kernel(a: np.ndarray, b: np.ndarray, sigma: float = 10.0) -> np.ndarray:
  """(3) of [N, D] and [M, D] -> [N, M]."""
  squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
  return np.exp(-np.maximum(squared, 0) / (2 * sigma**2))


def row_sums(kernel: Kernel, a: np.ndarray, b: np.ndarray, skip_diagonal: bool = False) -> np.ndarray:
  """Sums of k(a_i, b_j) over j, [N], in blocks; `besides`: over j other than i."""
  sums = np.empty(len(a))
  for rows in row_blocks(len(a), len(b)):
    values = kernel(a[rows], b)
    if skip_diagonal:
      values[np.arange(len(values)), np.arange(rows.start, rows.stop)] = 0
    sums[rows] = values.sum(1)
  return sums


def mmd(
  kernel: Kernel, a: np.ndarray, b: np.ndarray, unbiased: bool = True, level: float = 0.95
) -> ConfidenceInterval:
  """(1) of [N, D] and [M, D], its interval by (4): for a discrepancy well above zero."""
  within = [row_sums(kernel, x, x, skip_diagonal=unbiased) / (len(x) - unbiased) for x in (a, b)]
  between = row_sums(kernel, a, b) / len(b), row_sums(kernel, b, a) / len(a)
  value = within[0].mean() + within[1].mean() - 2 * between[0].mean()
  return normal_interval(value, *(2 * (same - cross) for same, cross in zip(within, between)), level=level)


def kid(
  real: np.ndarray, samples: np.ndarray, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> MeanAndStd:
  """(2) as it is usually quoted: over subsets of features [N, D] and [M, D] drawn without repeats.

  numpy promises never to change what a RandomState draws: the same seed gives the same digits, and
  torch-fidelity's.

  Raises:
    UserError: fewer features than a subset has, or features that do not compare.
  """
  real, samples = check_features(real, samples)
  if not 2 <= subset_size <= min(len(real), len(samples)) or subsets < 1:
    raise UserError(
      f"{subsets} subsets of {subset_size} from {len(real)} and {len(samples)} images; expected at least "
      f"one subset of 2 to "
      f"{min(len(real), len(samples))}"
    )
  rng = np.random.RandomState(seed)
  subset = lambda features: features[rng.choice(len(features), subset_size, replace=False)]
  values = [mmd(cubic_kernel, subset(real), subset(samples)).value for _ in range(subsets)]
  return MeanAndStd(float(np.mean(values)), float(np.std(values)))


def kernel_distance(real: np.ndarray, samples: np.ndarray, level: float = 0.95) -> ConfidenceInterval:
  """(2) of all features at once, with its interval.

  Raises:
    UserError: features that do not compare.
  """
  return mmd(cubic_kernel, *check_features(real, samples), level=level)


def cmmd(
  real: np.ndarray, samples: np.ndarray, sigma: float = 10.0, scale: float = 1000.0, level: float = 0.95
) -> ConfidenceInterval:
  """(3) of features [N, D] and [M, D], which are brought to length 1, with its interval.

  Raises:
    UserError: features that do not compare, or one of length 0.
  """
  real, samples = check_features(real, samples)
  lengths = [np.linalg.norm(features, axis=1, keepdims=True) for features in (real, samples)]
  if not all(length.all() for length in lengths):
    raise UserError(
      "features of length 0 have no direction; the images or the extractor's weights are broken"
    )
  kernel = lambda a, b: gaussian_kernel(a, b, sigma)
  interval = mmd(kernel, real / lengths[0], samples / lengths[1], unbiased=False, level=level)
  return ConfidenceInterval(*(scale * value for value in interval))
