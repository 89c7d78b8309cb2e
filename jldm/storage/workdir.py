"""A workdir: the folder of a run, and the experiment that owns it.

experiment.json                 the experiment with every Pretrained stage resolved
<stage>/latest/<step>/          checkpoints of each stage; the last one of an autoencoder holds the codec
<stage>/best/<step>/            the denoiser with the best score while training
<stage>/averages/<step>/        snapshots of the averages of a stage with ema=Power(...)
latents/<codec hash>/           raw moments of the training set
conditions/<hash>/              what the conditioners cache of each example
evaluation/                     metrics of samples and reconstructions, by step
metrics.jsonl  tb/  wandb/  images/  samples/  report.html
lock                            of the training that runs there
"""

from collections.abc import Iterator
import contextlib
import errno
from pathlib import Path
import re
import tempfile

from jldm.config.experiment import Experiment, Pretrained, Stage
from jldm.config.serialize import differences, dumps, loads, to_data
from jldm.core.errors import RESUME_HINT, UserError
from jldm.core.files import replace_file
from jldm.objectives.autoencoder import Reconstruction
from jldm.storage import lock

PARTIAL = "experiment.json.partial"
LEFT_BY_A_KILL = {PARTIAL, lock.NAME}  # at most, in `claim_workdir`
DISK_ERRORS = {
  getattr(errno, name)
  for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO")
  if hasattr(errno, name)
}


def read_experiment(workdir: Path) -> Experiment:
  """The experiment of a workdir.

  Raises:
    UserError: no such folder, or not a workdir.
  """
  path = workdir / "experiment.json"
  try:
    if not path.is_file():
      what = "has no experiment.json" if workdir.is_dir() else "does not exist"
      raise UserError(f"workdir {str(workdir)!r} {what}; expected a folder that train.py made (--workdir)")
    return loads(path.read_bytes())
  except OSError as error:
    raise UserError(
      f"cannot read workdir {str(workdir)!r}: {error.strerror}; choose another --workdir"
    ) from error


def resolve_pretrained(experiment: Experiment) -> Experiment:
  """Replaces every Pretrained by the stage that it stands for; UserError if its path is not a workdir."""
  for given in experiment.stages:
    if isinstance(given, Pretrained):
      experiment = experiment.with_stage(pretrained_stage(given))
  return experiment


def pretrained_stage(given: Pretrained) -> Stage:
  """A stage of no steps that starts from the last codec of another workdir."""
  codec = read_experiment(Path(given.path)).last("codec")
  if codec is None:
    raise UserError(f"Pretrained({given.path!r}): this workdir has no autoencoder; choose one that has")
  return Stage(
    name=given.name,
    objective=Reconstruction(network=codec.objective.network),
    steps=0,
    batch_size=given.batch_size,
    start=given.path,
  )


def check_workdir(workdir: Path, experiment: Experiment) -> None:
  """Checks that `workdir` may hold this experiment; writes nothing.

  Raises:
    UserError: it holds another experiment (with the difference) or other files, is not writable, or
      is not a path.
  """
  if re.match(r"\w+:/", str(workdir)):
    raise UserError(
      f"workdir {str(workdir)!r} is an address; expected a path on a disk or share that all processes see"
    )
  try:
    if (workdir / "experiment.json").is_file():
      changed = differences(to_data(read_experiment(workdir)), to_data(experiment))
      if changed:
        more = f" (and {len(changed) - 3} more)" if len(changed) > 3 else ""
        raise UserError(
          f"workdir {str(workdir)!r} holds another experiment: {'; '.join(changed[:3])}{more}; "
          "choose another --workdir"
        )
    elif workdir.exists() and not (
      workdir.is_dir() and {path.name for path in workdir.iterdir()} <= LEFT_BY_A_KILL
    ):
      raise UserError(f"{str(workdir)!r} is not empty and not a workdir; choose another --workdir")
    existing = next(folder for folder in (workdir, *workdir.absolute().parents) if folder.exists())
    with tempfile.TemporaryFile(dir=existing):
      pass
  except OSError as error:
    raise UserError(
      f"cannot write to workdir {str(workdir)!r}: {error.strerror}; choose another --workdir"
    ) from error


def claim_workdir(workdir: Path, experiment: Experiment) -> None:
  """Makes the folder and writes the experiment into it atomically."""
  check_workdir(workdir, experiment)
  text = dumps(experiment)
  with replace_file(workdir / "experiment.json", partial=PARTIAL) as file:
    file.write(text.encode())


def check_shared_workdir(workdir: Path, experiment: Experiment) -> None:
  """Checks that this process sees the workdir that the primary process has claimed.

  Raises:
    UserError: it sees nothing, or another experiment.
  """
  if not (workdir / "experiment.json").is_file():
    raise UserError(
      f"workdir {str(workdir)!r} of process 0 is not visible to this process; "
      "choose a --workdir that all processes share"
    )
  check_workdir(workdir, experiment)


@contextlib.contextmanager
def user_error_if_disk_fails(workdir: Path) -> Iterator[None]:
  """Raises a UserError in place of an OSError if the disk is full or read-only while the block writes."""
  try:
    yield
  except OSError as error:
    if error.errno not in DISK_ERRORS:
      raise
    what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    raise UserError(
      f"cannot write to workdir {str(workdir)!r}: {what}; fix that, and {RESUME_HINT}"
    ) from error


def checkpoints_folder(workdir: Path, stage: str) -> Path:
  return workdir / stage / "latest"


def best_folder(workdir: Path, stage: str) -> Path:
  return workdir / stage / "best"


def averages_folder(workdir: Path, stage: str) -> Path:
  return workdir / stage / "averages"


def evaluation_folder(workdir: Path) -> Path:
  return workdir / "evaluation"
