"""The Inception Score: exp of the mean of KL(p(y | x) || p(y)), Salimans et al. 2016 (1606.03498), section 4.

Samples are shuffled and cut into parts, each with its own p(y); mean and standard deviation are
over the parts.  Fewer samples a part score less.
"""

import numpy as np
from scipy.special import rel_entr, softmax

from jldm.core.errors import UserError
from jldm.metrics.features import check_features
from jldm.metrics.mmd import MeanAndStd


def inception_score(logits: np.ndarray, splits: int = 10, seed: int | None = 2020) -> MeanAndStd:
  """Of logits [N, classes]; shuffled as torch-fidelity does with that seed, or in their order where it is
  None.

  The usual figure takes the logits without the last layer's bias, as torch-fidelity has them.

  Raises:
    UserError: fewer than two samples a part, or logits that are not finite.
  """
  (logits,) = check_features(logits)
  n = len(logits)
  if not 1 <= splits <= n // 2:
    raise UserError(f"splits={splits} of {n} samples; expected 1 to {n // 2}, at least two samples each")
  if seed is not None:
    logits = logits[np.random.RandomState(seed).permutation(n)]
  scores = [split_score(logits[i * n // splits : (i + 1) * n // splits]) for i in range(splits)]
  return MeanAndStd(float(np.mean(scores)), float(np.std(scores)))


def split_score(logits: np.ndarray) -> float:
  """Of one part, float64 [N, classes]."""
  p = softmax(logits, axis=1)
  return float(np.exp(rel_entr(p, p.mean(0)).sum(1).mean()))  # of p = 0 it is 0
