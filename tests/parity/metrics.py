"""What torch-fidelity 0.4 and prdc 0.2 make of features: `python tests/parity/metrics.py` makes metrics.npz.

Needs torch-fidelity and prdc.  The features, float64, are stored too: skewed, correlated, of full rank.
"""

from pathlib import Path

import numpy as np

SUBSETS, SUBSET_SIZE, SEED, SPLITS, NEIGHBOURS = 20, 100, 7, 6, (3, 5)


def main() -> None:
  from prdc import compute_prdc
  import torch
  from torch_fidelity import metric_fid, metric_isc, metric_kid

  rng = np.random.default_rng(0)
  mixing = rng.normal(size=(12, 12))
  real = np.exp(0.5 * rng.normal(size=(260, 12))) @ mixing
  samples = np.exp(0.6 * rng.normal(size=(230, 12))) @ (mixing + 0.1 * rng.normal(size=(12, 12))) + 0.2
  logits = 2 * rng.normal(size=(203, 11))
  arrays = {"real": real, "samples": samples, "logits": logits}

  both = [torch.from_numpy(features) for features in (real, samples)]
  moments = [metric_fid.fid_features_to_statistics(features) for features in both]
  arrays["frechet"] = metric_fid.fid_statistics_to_metric(*moments, False)[metric_fid.KEY_METRIC_FID]
  kid = metric_kid.kid_features_to_metric(
    *both,
    kid_subsets=SUBSETS,
    kid_subset_size=SUBSET_SIZE,
    rng_seed=SEED,
    kid_kernel="poly",
    kid_kernel_poly_degree=3,
    kid_kernel_poly_gamma=None,
    kid_kernel_poly_coef0=1,
    verbose=False,
  )
  arrays["kid"] = [kid[metric_kid.KEY_METRIC_KID_MEAN], kid[metric_kid.KEY_METRIC_KID_STD]]
  for name, seed in (("shuffled", SEED), ("in_order", None)):
    score = metric_isc.isc_features_to_metric(torch.from_numpy(logits), SPLITS, seed is not None, seed)
    arrays[f"inception_score_{name}"] = [
      score[metric_isc.KEY_METRIC_ISC_MEAN],
      score[metric_isc.KEY_METRIC_ISC_STD],
    ]
  arrays["rbf"] = metric_kid.kernel_mmd(
    real[:200], samples[:200], kid_kernel="rbf", kid_kernel_rbf_sigma=10.0
  )
  for k in NEIGHBOURS:
    found = compute_prdc(real, samples, k)
    arrays[f"prdc_{k}"] = [found[name] for name in ("precision", "recall", "density", "coverage")]
  np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
  main()
