"""A whole run: trains the stages of an experiment, one after the other, in a workdir."""

from collections.abc import Iterator, Sequence
import contextlib
from pathlib import Path

from jldm.config.experiment import Experiment
from jldm.config.serialize import to_data
from jldm.core.errors import UserError, printable
from jldm.data.balance import check_balance
from jldm.distributed import multihost, sharding
from jldm.inference.model import StagePlace
from jldm.runs import validate
from jldm.runs.run import Run
from jldm.runs.stage import train_stage
from jldm.storage import lock, workdir as workdirs
from jldm.storage.class_names import write_class_names
from jldm.train.goodput import Goodput
from jldm.train.logging import import_wandb, start_wandb
from jldm.train.preemption import watch_signals


def train(
  experiment: Experiment,
  workdir: str | Path,
  stages: Sequence[str] | None = None,
  devices: sharding.Devices = None,
  wandb: str | None = None,
) -> None:
  """Trains the stages that are not finished, all or those named, in the experiment's order.

  `wandb` is a project of Weights & Biases to log to as well.

  Raises:
    UserError: a data set that is missing or does not fit, a batch that the devices do not divide,
      another experiment or other data in the workdir, another training in it, a stage that needs an
      unfinished one, wandb that is not installed, a disk that is full or read-only.
    NonFiniteError: ten non-finite updates in a row.
    Preempted: SIGTERM or SIGINT came; the current step is committed.
  """
  # 1. The experiment as its workdir will hold it, and the stages to train.
  workdir, experiment = Path(workdir), workdirs.resolve_pretrained(experiment)
  wanted = {experiment.stage(name).name for name in stages or experiment.names}
  places = [StagePlace(experiment, stage, workdir) for stage in experiment.stages if stage.name in wanted]
  if experiment.data is None:
    raise UserError(
      "the experiment has no data and cannot be trained; use its workdir as a stage of another experiment: "
      "Pretrained('…')"
    )
  if multihost.is_primary():
    workdirs.check_workdir(workdir, experiment)

  # 2. Everything that can be refused is refused before anything is written.
  data = experiment.data
  train_set, held_out = data.open(data.train), data.open(data.held_out)
  check_balance(data, train_set)
  identity = data.fingerprint() if multihost.is_primary() else {}
  if multihost.is_primary():
    workdirs.check_data(workdir, identity)
  extractor = validate.validate_run(places, devices)
  workdirs.check_readable(experiment)
  if wandb:
    import_wandb()

  # 3. The run claims the workdir and refuses other trainings in it; SIGTERM ends it after a commit.
  disk_errors = workdirs.user_error_if_disk_fails(workdir)
  with watch_signals() as notice, disk_errors, claim_for_run(workdir, experiment, identity):
    logged = start_wandb(wandb, workdir, to_data(experiment)) if wandb and multihost.is_primary() else None
    clock = Goodput()
    if multihost.is_primary():
      for note in data.notes():
        print(printable(note), flush=True)

    # 4. The stages.  Running the same command again resumes the run:
    #   a. A stage whose last step is committed, or that its patience ended, is finished and is skipped.
    #   b. Any other resumes from its newest good checkpoint; a damaged one is reported and set aside.
    #   c. Data and keys are functions of (seed, stage name, step), so a resumed run ends with the same bits.
    #   d. The result of a stage, such as a codec with its mean and std, is committed with the last step.
    for i, at in enumerate(places):
      if i:
        notice.raise_if_requested()
      train_stage(Run(at, devices, extractor, logged, notice, clock), train_set, held_out)

    # 5. The end.
    if logged is not None:
      logged.finish()


@contextlib.contextmanager
def claim_for_run(workdir: Path, experiment: Experiment, identity: dict) -> Iterator[None]:
  """Claims the workdir: the primary process holds its lock; the others check that they see it."""
  with lock.held(workdir) if multihost.is_primary() else contextlib.nullcontext():
    if multihost.is_primary():
      workdirs.claim_workdir(workdir, experiment, identity)
      write_class_names(workdir, experiment.data.class_names())
    multihost.barrier("claimed")
    if not multihost.is_primary():
      workdirs.check_shared_workdir(workdir, experiment)
    yield
