"""How noisy figures are: those of real pictures, drawn anew again and again, and whether intervals say so.

  python -m benchmarks.noise runs/fashion_mnist --extractor fashion

SIZE training pictures are set aside and judged against MOST others as samples would be, DRAWS
times, none twice.  For each
figure: mean and standard deviation over the draws, half an interval's width over 1.96, which should
be the latter, and in how many draws the interval holds the mean.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from jldm.distributed import sharding
from jldm.evaluation import evaluate, features, judge as judging
from jldm.evaluation.evaluate import EvaluationSettings
from jldm.storage import workdir as workdirs

SIZE, DRAWS, MOST = 1000, 12, 5000
METRICS = ("frechet", "kid", "manifold", "agreement", "inception_score", "duplicates")


def measured(
  found: features.Features, size: int, draws: int, metrics: tuple[str, ...] = METRICS
) -> dict[str, np.ndarray]:
  """Figures of pictures drawn from `found` against the others: value, low, high of every draw, [draws,
  3] by name.
  """
  order, values = np.random.default_rng(0).permutation(len(found)), {}
  for draw in range(draws):
    rows = np.arange(draw * size, (draw + 1) * size)
    others = np.delete(order, rows)[:MOST]
    judge = judging.Judge(found.take(others), found.take(order[rows]), metrics, {})
    for name, each in judge.score(judge.real).items():
      values.setdefault(name, []).append(each)
  return {name: np.array(each) for name, each in values.items()}


def row(name: str, size: int, each: np.ndarray) -> str:
  """One line of the table."""
  value, low, high = each.T
  mean, spread, claimed = value.mean(), value.std(ddof=1), (high - low).mean() / (2 * 1.96)
  held = int(((low <= mean) & (mean <= high)).sum())
  return f"| {name} | {size} | {mean:.3g} | {spread:.2g} | {claimed:.2g} | {held} of {len(value)} |"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdir", type=Path)
  parser.add_argument("--extractor", required=True)
  options = parser.parse_args()
  sharding.configure(None)
  experiment = workdirs.read_experiment(options.workdir)
  asked = dataclasses.replace(experiment.evaluation, extractor=options.extractor)
  real = evaluate.prepare_real_images(
    experiment,
    evaluate.open_extractor(asked),
    EvaluationSettings(),
    workdirs.evaluation_folder(options.workdir),
  )
  print(
    "| figure | N | mean | std | by the interval | intervals that hold the mean |\n|---|---|---|---|---|---|"
  )
  for name, each in measured(real.judge.reference, SIZE, DRAWS).items():
    print(row(name, SIZE, each), flush=True)


if __name__ == "__main__":
  main()
