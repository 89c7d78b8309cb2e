import numpy as np

from benchmarks import noise
from jldm.evaluation.features import Features


def test_intervals_of_independent_draws():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 900).astype(np.int32)
  actual = Features(np.float32(rng.normal(size=(900, 4))), np.float32(np.eye(3)[labels]), labels, "toy")
  values = noise.measured(actual, 100, 6, ("frechet", "agreement"))
  assert values.keys() == {"frechet", "agreement"} and values["frechet"].shape == (6, 3)
  assert len(set(values["frechet"][:, 0])) == 6 and (values["agreement"][:, 0] == 1).all()
  assert (
    noise.row("a", 5, np.array([[1.0, 0.5, 1.5], [3.0, 2.9, 3.1]])) == "| a | 5 | 2 | 1.4 | 0.15 | 0 of 2 |"
  )
