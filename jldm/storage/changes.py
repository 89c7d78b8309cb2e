"""Which settings of a run may change when its command is given again, so that no number is silently wrong.

  A run that holds no checkpoint yet       may be started with any other settings.
  FREE fields, FREE_OF_STAGE of a stage    change no step and may always change, except OF_THE_BEST, once a
                                           best denoiser was chosen by them.
  data.data_dir                            may change if the data are known to be the same (data.json).
  A stage that holds no checkpoint yet     may change; `patience`, which ends a stage, as well.
  CONTINUED fields of a stage              may change as long as steps are left to train: more `steps` of a
                                           finished stage, a lower rate after one that diverged.

But no stage changes whose result another stage has trained on.
"""

from pathlib import Path

from jldm.config.experiment import Experiment, Stage
from jldm.config.serialize import Change, changed_fields, to_data
from jldm.core.errors import UserError
from jldm.storage.checkpoint import Checkpoints

FREE = ("sampling", "evaluation")
OF_THE_BEST = tuple(f"evaluation.{name}" for name in ("metric", "extractor", "weights", "n"))
FREE_OF_STAGE = (
  "devices",
  "log_every_steps",
  "save_every_steps",
  "keep",
  "keep_every_steps",
  "picture_every_steps",
  "snapshot_every_steps",
)
CONTINUED = ("steps", "optimizer.schedule", "optimizer.clip_norm")
DATA = "data.json"  # what the data of a run were when it began
FOLDERS = ("latest", "best", "averages")  # of a stage, in which checkpoints are


def find_changes(workdir: Path, old: Experiment, new: Experiment) -> list[Change]:
  """The changes of a run's settings, all of which are legal.

  Raises:
    UserError: one of them is not, with what stands in its way.
  """
  changed = changed_fields(to_data(old), to_data(new))
  reached = {stage.name: last_step(workdir, stage.name) for stage in old.stages}
  if not any(step is not None for step in reached.values()):
    return changed
  reasons = [objection(workdir, change, old, new, reached) for change in changed]
  refused = [str(change) for change, reason in zip(changed, reasons) if reason]
  if refused:
    more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
    raise UserError(
      f"workdir {str(workdir)!r} holds another experiment: {'; '.join(refused[:3])}{more}; "
      f"{next(filter(None, reasons))}; choose another --workdir"
    )
  return changed


def last_step(workdir: Path, stage: str) -> int | None:
  """The last committed step of a stage; None if it holds no checkpoint."""
  steps = [step for name in FOLDERS for step in Checkpoints(workdir / stage / name, read_only=True).steps()]
  return max(steps, default=None)


def best_steps(workdir: Path, stage: str) -> list[int]:
  return Checkpoints(workdir / stage / "best", read_only=True).steps()


def objection(
  workdir: Path, change: Change, old: Experiment, new: Experiment, reached: dict[str, int | None]
) -> str:
  """Why a field of a run that holds checkpoints cannot change; nothing if it can."""
  head, _, field = change.path.partition(".")
  if change.path in OF_THE_BEST and (chosen := [n for n in reached if best_steps(workdir, n)]):
    return f"the best {chosen[0]} was chosen by it, remove {workdir / chosen[0] / 'best'}"
  if head in FREE:
    return ""
  if change.path == "data.data_dir":
    return "" if (workdir / DATA).is_file() else "it is not recorded what the data were"
  if head not in reached or head not in new.names:
    return "it holds checkpoints"
  if field in FREE_OF_STAGE:
    return ""
  trained_on = [name for name in users_of(old, head) if reached[name] is not None]
  if trained_on:
    return f"{trained_on[0]} has trained on the result of {head}"
  last = reached[head]
  if last is None or field == "patience":
    return ""
  if not is_continued(field):
    return f"{head} is at step {last}"
  left = isinstance(new.stage(head), Stage) and new.stage(head).steps > last
  return "" if left else f"{head} is at step {last}, set {head}.steps to more"


def is_continued(field: str) -> bool:
  """Whether a field of a stage is one of CONTINUED, or a field of one."""
  return any(field == name or field.startswith(f"{name}.") for name in CONTINUED)


def users_of(experiment: Experiment, name: str) -> list[str]:
  """The stages that need a stage's result, or start from it, or from that of such a stage."""
  users: list[str] = []
  for stage in experiment.stages:
    sources = [stage.start, *(need.source for need in stage.needs)] if isinstance(stage, Stage) else []
    if any(source in (name, *users) for source in sources if isinstance(source, str)):
      users.append(stage.name)
  return users
