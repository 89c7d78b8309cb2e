"""A workdir: the folder of a run, and the experiment that owns it.

experiment.json                 the experiment with every Pretrained stage resolved
data.json                       what the data were when the run began
changes.jsonl                   what was changed of the experiment since, and the steps that were committed
from.json                       the checkpoint of another workdir that the run began from, if it did
classes.json                    the names of the classes, if the data set has names
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
import json
from pathlib import Path
import re
import tempfile

from jldm.config.experiment import Experiment, Pretrained, Stage
from jldm.config.serialize import Change, differences, dumps, loads
from jldm.core.errors import RESUME_HINT, UserError
from jldm.core.files import replace_file
from jldm.objectives.autoencoder import Reconstruction
from jldm.storage import lock
from jldm.storage.changes import DATA, find_changes, last_step

PARTIAL = "experiment.json.partial"
DATA_PARTIAL = "data.json.partial"
LEFT_BY_A_KILL = {PARTIAL, DATA, DATA_PARTIAL, lock.NAME}  # at most, in `claim_workdir`
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
    return loads(path.read_bytes(), str(workdir))
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
    remeasure=given.remeasure,
  )


def check_workdir(workdir: Path, experiment: Experiment) -> list[Change]:
  """Checks that `workdir` may hold this experiment, and returns what it changes there; writes nothing.

  Raises:
    UserError: it holds another experiment (with the difference) or other files, is not writable, or
      is not a path.
  """
  if re.match(r"\w+:/", str(workdir)):
    raise UserError(
      f"workdir {str(workdir)!r} is an address; expected a path on a disk or share that all processes see"
    )
  changed = []
  try:
    if (workdir / "experiment.json").is_file():
      changed = find_changes(workdir, read_experiment(workdir), experiment)
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
  return changed


def check_readable(experiment: Experiment) -> None:
  """Raises a UserError if experiment.json could not be read back, as with text where a number belongs."""
  loads(dumps(experiment))


def read_data_identity(workdir: Path) -> dict:
  """What the data of a run were when it began, as `Dataset.fingerprint` gives it; {} if it is not known.

  Raises:
    UserError: data.json is damaged.
  """
  path = workdir / DATA
  if not path.is_file():
    return {}
  try:
    identity = json.loads(path.read_bytes())
    if not isinstance(identity, dict):
      raise ValueError("not an object")
    return identity
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(
      f"{str(path)!r} cannot be read; remove it if the data are those that the run began with"
    ) from error


def data_differences(workdir: Path, identity: dict) -> list[str]:
  """How data differ from those that the run of a workdir began with; [] if not, or if that is not known."""
  recorded = read_data_identity(workdir)
  return differences(recorded, identity, "data") if recorded else []


def check_data(workdir: Path, identity: dict) -> None:
  """Checks that the data are those that the run of a workdir has trained on; writes nothing.

  Raises:
    UserError: they are not, with the difference.
  """
  if not (workdir / "experiment.json").is_file():
    return
  changed = data_differences(workdir, identity)
  if changed and any(last_step(workdir, name) is not None for name in read_experiment(workdir).names):
    raise UserError(
      f"workdir {str(workdir)!r} began with other data: {'; '.join(changed[:3])}; prepare them as they were, "
      f"choose another --workdir, or remove {workdir / DATA} if they are the same to you"
    )


def claim_workdir(workdir: Path, experiment: Experiment, identity: dict | None = None) -> None:
  """Makes the folder and writes the experiment, and what its data are, into it atomically.

  Every change of an experiment that is there is a line of output and of changes.jsonl.
  """
  changed = check_workdir(workdir, experiment)
  text = dumps(experiment, str(workdir))
  if identity:
    check_data(workdir, identity)
    with replace_file(workdir / DATA, partial=DATA_PARTIAL) as file:
      file.write((json.dumps(identity, indent=2) + "\n").encode())
  if changed:
    record_changes(workdir, changed)
  with replace_file(workdir / "experiment.json", partial=PARTIAL) as file:
    file.write(text.encode())


def record_changes(workdir: Path, changed: list[Change]) -> None:
  """Prints the changes of a run's experiment, one per line, and adds them to changes.jsonl."""
  steps = {name: last_step(workdir, name) or 0 for name in read_experiment(workdir).names}
  at = ", ".join(f"{name} at step {step}" for name, step in steps.items())
  for change in changed:
    print(f"{workdir}: {change} ({at})", flush=True)
  with (workdir / "changes.jsonl").open("a") as file:
    file.writelines(json.dumps(change._asdict() | {"steps": steps}) + "\n" for change in changed)


def read_changes(workdir: Path, stage: str) -> Iterator[tuple[int, str]]:
  """The changes of a stage: the step that it was at, and the path of the field; broken lines are skipped."""
  path = workdir / "changes.jsonl"
  for line in path.read_bytes().splitlines() if path.is_file() else ():
    try:
      row = json.loads(line)
      step, field = row["steps"][stage], row["path"]
    except (ValueError, TypeError, KeyError, RecursionError):
      continue
    if type(step) is int and isinstance(field, str) and field.startswith(f"{stage}."):
      yield step, field


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
  if changed := check_workdir(workdir, experiment):
    raise UserError(
      f"workdir {str(workdir)!r} of process 0 holds another experiment: {'; '.join(map(str, changed[:3]))}; "
      "give every process the same settings"
    )


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
