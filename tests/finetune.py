"""configs/sd15_finetune.py on a small pipeline that diffusers saved, with captioned pictures."""

import dataclasses
import json
from pathlib import Path

from PIL import Image

from jldm.cli import main
from jldm.config.experiment import Experiment, Need
from jldm.data.prepare import prepare
from jldm.inference.load import text_conditioner
from jldm.storage import workdir as workdirs
from jldm.train.optimizer import Constant
from tests.configs import config
from tests.pipelines import write_pipeline

NAME = "sd15_finetune"


def make_home(home: Path) -> None:
  """A folder with the pipeline that diffusers saved, as it was and as a workdir, and captioned pictures."""
  write_pipeline(home / "published", "sd1")
  assert main(["convert", str(home / "published"), str(home / "sd"), "--to", "jldm"]) == 0
  (home / "pictures").mkdir()
  rows = []
  for number in range(20):
    level = 60 + 120 * (number % 2)
    Image.new("RGB", (16, 16), (level, 255 - level, 90)).save(home / "pictures" / f"{number}.png")
    rows.append({"file_name": f"{number}.png", "text": ("a red cat", "blurred")[number % 2]})
  (home / "pictures" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  prepare("folder", home / "pictures", "mine", home / "data", channels=3)


def fixture_sized(home: Path, **fields) -> Experiment:
  """The config with the networks of the small pipeline, and a rate for its random parameters."""
  experiment, source = config(NAME), str(home / "sd")
  (stage,) = experiment.stages
  theirs = workdirs.read_experiment(home / "sd").stage("denoiser").objective
  network = theirs.network.clone(remat=stage.objective.network.remat, dtype=stage.objective.network.dtype)
  stage = dataclasses.replace(
    stage,
    start=source,
    needs=(Need("codec", source), Need("text", source)),
    objective=dataclasses.replace(
      stage.objective, network=network, conditioners=(text_conditioner(source, dropout=0.1),)
    ),
    optimizer=dataclasses.replace(stage.optimizer, schedule=Constant(peak=2e-3, warmup_steps=10)),
    **({"steps": 2, "batch_size": 8, "log_every_steps": 1, "picture_every_steps": 10_000} | fields),
  )
  data = dataclasses.replace(experiment.data, data_dir=str(home / "data"), height=16, width=16, caption=12)
  sampling = dataclasses.replace(experiment.sampling, steps=2)
  return dataclasses.replace(experiment, data=data, stages=(stage,), sampling=sampling)
