"""Text encoders for `jldm convert`: to a workdir that stages need, or to a folder of transformers."""

from pathlib import Path
from typing import Any

from jldm.config.experiment import Experiment, Stage
from jldm.core import trees
from jldm.inference.load import TOKENIZER, load_finished
from jldm.inference.model import find_stage
from jldm.interop import towers
from jldm.objectives.tower import Tower
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints

STAGE = "text"


def import_tower(source: Path, out: Path, dtype: str = "float32") -> str:
  """Writes a published text tower as a workdir that stages need, with its tokenizer."""
  tower, params = towers.load_tower(source, dtype=dtype)
  stage = Stage(name=STAGE, objective=Tower(network=tower.network), steps=0)
  workdirs.claim_workdir(out, Experiment(stages=(stage,)))
  with Checkpoints(workdirs.checkpoints_folder(out, stage.name)) as saved:
    saved.save(stage.steps, {"ema": params})
  made = f"{out}: a workdir that a stage may need, {describe_tower(tower.network, params)}"
  if tower.tokenizer is None:
    return f"{made}; {str(source)!r} has no tokenizer: put its files into {out / TOKENIZER}"
  towers.copy_tokenizer(tower.tokenizer, out / TOKENIZER)
  return f"{made}, with its tokenizer"


def export_tower(source: Path, out: Path) -> str:
  """Writes a text tower of a workdir, or a published one, as a folder of transformers."""
  if is_tower_workdir(source):
    loaded, tokenizer = load_finished(find_stage(source, STAGE)), towers.find_tokenizer(source)
    network, params = loaded.model, loaded.params
  else:
    tower, params = towers.load_tower(source)
    network, tokenizer = tower.network, tower.tokenizer
  towers.save_tower(out, network, params)
  if tokenizer is not None:
    towers.copy_tokenizer(tokenizer, out)
  return f"{out}: a folder for transformers, {describe_tower(network, params)}"


def is_tower_workdir(source: Path) -> bool:
  is_workdir = (source / "experiment.json").is_file()
  return is_workdir and workdirs.read_experiment(source).stages[-1].makes == "tower"


def describe_tower(network: Any, params: dict) -> str:
  return f"{type(network).__name__}, {trees.count(params) / 1e6:.2f} M parameters"
