"""A run that begins from a checkpoint of another one.

The other run is copied as it was at that step: its experiment, the results of the stages before, the
checkpoint, the averages and the lines of metrics up to there.  Training goes on from the copy as after any
stop, with the settings that may change then.
"""

import json
import os
from pathlib import Path
import shutil
import tempfile

from jldm.config.experiment import Experiment
from jldm.core.errors import UserError
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import MANIFEST, Checkpoints
from jldm.train.logging import read_rows

ORIGIN = "from.json"  # which checkpoint a run began from


def fork(experiment: Experiment, workdir: Path, source: Path, step: int, stage: str | None = None) -> None:
  """Copies the run in `source` as it was at a step of a stage into `workdir`, unless that began from it.

  stage: by default the last one that holds a checkpoint.

  Raises:
    UserError: `source` has no such checkpoint, `workdir` holds another run, or the experiment has
      changes that the run cannot go on with.
  """
  theirs = workdirs.read_experiment(source)
  name = theirs.stage(stage).name if stage else last_begun(source, theirs)
  origin = {"workdir": str(source.resolve()), "stage": name, "step": step}
  if workdir.is_dir() and any(workdir.iterdir()):
    check_origin(workdir, origin)
    return
  with workdirs.user_error_if_disk_fails(workdir):
    workdir.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{workdir.name}-", dir=workdir.absolute().parent) as temporary:
      copy = Path(temporary) / "copy"
      copy_until(source, copy, theirs, name, step)
      (copy / ORIGIN).write_text(json.dumps(origin) + "\n")
      try:
        workdirs.check_workdir(copy, workdirs.resolve_pretrained(experiment))
      except UserError as error:
        raise UserError(str(error).replace(str(copy), f"{source} at {name} step {step}")) from error
      os.rename(copy, workdir)
  print(f"{workdir}: begins from {name} step {step} of {source}", flush=True)


def last_begun(source: Path, experiment: Experiment) -> str:
  """The last stage that holds a checkpoint; UserError if none does."""
  begun = [name for name in experiment.names if committed(source, name)]
  if not begun:
    raise UserError(f"--from {str(source)!r} holds no checkpoint yet; expected a workdir that has one")
  return begun[-1]


def committed(workdir: Path, stage: str) -> list[int]:
  """The committed steps of a stage."""
  return Checkpoints(workdirs.checkpoints_folder(workdir, stage), read_only=True).steps()


def check_origin(workdir: Path, origin: dict) -> None:
  """Raises a UserError unless the run in `workdir` began from that checkpoint."""
  try:
    theirs = json.loads((workdir / ORIGIN).read_bytes())
  except (OSError, ValueError, RecursionError):
    theirs = None
  if theirs != origin:
    raise UserError(
      f"workdir {str(workdir)!r} is not empty and did not begin from {origin['stage']} step {origin['step']} "
      f"of {origin['workdir']!r}; choose another --workdir, or go on without --from and --step"
    )


def copy_until(source: Path, copy: Path, experiment: Experiment, stage: str, step: int) -> None:
  """Writes a workdir with what `source` had when a stage was at a step; UserError if it has it no more."""
  copy.mkdir()
  for file in ("experiment.json", workdirs.DATA):
    if (source / file).is_file():
      shutil.copyfile(source / file, copy / file)
  last = {each.name: max(committed(source, each.name), default=None) for each in experiment.earlier(stage)}
  for name, newest in (last | {stage: step}).items():
    if newest is not None:
      folder = workdirs.checkpoints_folder
      copy_step(folder(source, name), folder(copy, name), newest)
  averages = workdirs.averages_folder(source, stage)
  for kept in Checkpoints(averages, read_only=True).steps():
    if kept <= step:
      copy_step(averages, workdirs.averages_folder(copy, stage), kept)
  with (copy / "metrics.jsonl").open("wb") as file:
    for line, row in read_rows(source / "metrics.jsonl"):
      if row["stage"] in last or (row["stage"] == stage and row["step"] <= step):
        file.write(line + b"\n")


def copy_step(source: Path, folder: Path, step: int) -> None:
  """Copies a checkpoint, its manifest last, and verifies it; UserError if it is not there or damaged."""
  Checkpoints(source, read_only=True).items(step)
  shutil.copytree(source / str(step), folder / str(step))
  shutil.copyfile(source / f"{step}{MANIFEST}", folder / f"{step}{MANIFEST}")
  Checkpoints(folder, read_only=True).items(step)
