"""What fits the data where nobody chose: an evaluation's extractor, number of samples and metrics."""

from collections.abc import Callable, Collection
import dataclasses

from jldm.config.experiment import Experiment
from jldm.core.words import count_text
from jldm.data.dataset import check_dataset
from jldm.evaluation import evaluate, judge as judging
from jldm.evaluation.evaluate import FEWEST, EvaluationSettings
from jldm.metrics.extractors.extractor import LoadedExtractor

Shape = tuple[int, int, int]  # (H, W, C)

# The extractors that need no file of weights, and which pictures each is for; the first that fits is chosen.
FITTING: dict[str, Callable[[Shape], bool]] = {
  "fashion": lambda shape: shape[2] == 1 and all(28 <= side <= 32 for side in shape[:2]),
  "pixels": lambda shape: True,
}


def choose_extractor(shape: Shape) -> str:
  """The name of the extractor for pictures of a shape: a network if one fits, else the pixels themselves."""
  return next(name for name, fits in FITTING.items() if fits(shape))


def choose_n(most: int, train: int, held_out: int) -> int:
  """The number of samples, at most `most`: as many as pictures are held out, or half of those trained on.

  It is never below FEWEST, which the data may refuse.
  """
  return min(most, max(held_out, train // 2, FEWEST))


def fit_to_data(
  experiment: Experiment, settings: EvaluationSettings, free: Collection[str]
) -> tuple[LoadedExtractor, EvaluationSettings, str]:
  """The extractor, the settings with those that are `free` fitted to the data, and a line of what was chosen.

  free: "n" and "metrics", where nobody gave them.  The extractor is free if the experiment names none.

  Raises:
    UserError: the data cannot be opened, or are too few for what somebody gave.
  """
  data, evaluation, chosen = check_dataset(experiment.data), experiment.evaluation, []
  if not evaluation.extractor and not evaluation.weights:
    shape = evaluate.sample_shape(data)
    evaluation = dataclasses.replace(evaluation, extractor=choose_extractor(shape))
    chosen.append(f"--extractor {evaluation.extractor} for pictures of {'x'.join(map(str, shape))}")
  loaded = evaluate.open_extractor(evaluation)
  train, held_out = evaluate.open_splits(data)
  if "n" in free and (n := choose_n(settings.n, len(train), len(held_out))) != settings.n:
    settings = dataclasses.replace(settings, n=n)
    chosen.append(
      f"--n {n} since {count_text(len(held_out), 'picture is', 'pictures are')} held out "
      f"and {len(train)} trained on"
    )
  if "metrics" in free:
    sets = judging.choose_real_sets(train, held_out, settings.n, settings.reference)
    few, width = min(len(sets.reference.rows), len(sets.real.rows)), loaded.width(evaluate.sample_shape(data))
    if few <= width:
      left_out = {"frechet": f"{few} pictures are too few for features of width {width}"}
      metrics = tuple(name for name in settings.metrics if name not in left_out)
      settings = dataclasses.replace(settings, metrics=metrics, left_out=left_out)
      chosen.append(f"--metrics {','.join(metrics)} since {left_out['frechet']}")
  return loaded, settings, f"chosen for these data: {'; '.join(chosen)}" if chosen else ""
