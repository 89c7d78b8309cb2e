"""One of two processes is killed or stopped, at random moments: python -m tests.faults.several --count 20

A tiny experiment is trained by two processes.  At a moment drawn at random one of them is killed or stopped,
and the other must end within LIMIT_S with exit code 75 and one line that names the lost process, without a
traceback or a stack of C++.  Before the first meeting it must say for whom it waits.
"""

import argparse
import collections
from collections.abc import Callable, Iterator
from pathlib import Path
import random
import shutil
import signal
import subprocess
import tempfile
import time
from typing import NamedTuple

from jldm.core.errors import Preempted
from jldm.distributed import heartbeat
from jldm.storage import workdir as workdirs
from tests.configs import STAGES
from tests.faults import kills
from tests.faults.processes import DEADLINE_S, both, log_lines, logged, until, write_config

LIMIT_S = heartbeat.SILENCE_S + 10
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
STEPS = 8
CHANGES = {f"{stage}__save_every_steps": 3 for stage in STAGES} | {
  f"{stage}__picture_every_steps": kills.PICTURE_EVERY for stage in STAGES
}
CONNECTED = b"[Gloo] Rank"  # what a process says once its devices are connected
OF_CXX = ("Check failure", "terminate called", "    @   ", "Traceback", "Aborted")


def meeting(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """In the first seconds: at the import, the first meeting, or JAX's."""
  end = time.monotonic() + draw.uniform(0, 6)
  return lambda: time.monotonic() >= end


def compiling(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """The processes are connected and no step has been logged."""
  log, passed = workdir.with_suffix(".0.log"), draw.uniform(0, 3)
  seen = []

  def now():
    if not seen and log.exists() and CONNECTED in log.read_bytes():
      seen.append(time.monotonic())
    return bool(seen) and time.monotonic() >= seen[0] + passed

  return now


def first_step(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """The first step of a stage is logged."""
  before = kills.total(workdir)
  return lambda: kills.total(workdir) > before


def saving(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """A checkpoint is on disk without its manifest, and is none that an earlier hit left."""
  left = uncommitted(workdir)

  def now():
    actual = uncommitted(workdir)
    left.intersection_update(actual)
    return bool(actual - left)

  return now


def uncommitted(workdir: Path) -> set[tuple[str, str]]:
  """(stage, step) of the checkpoints without a manifest."""
  folders = {stage: workdirs.checkpoints_folder(workdir, stage) for stage in STAGES}
  return {
    (stage, step)
    for stage, folder in folders.items()
    for step in {path.name.partition(".")[0] for path in folder.glob("[0-9]*")}
    if not (folder / f"{step}.manifest.json").exists()
  }


def between_stages(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """The autoencoder is finished and the denoiser has logged nothing."""
  done = workdirs.checkpoints_folder(workdir, "autoencoder") / f"{STEPS}.manifest.json"
  return lambda: done.exists() and not logged(workdir, "denoiser")


def ending(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """The last step is logged."""
  passed, seen = draw.uniform(0, 1), []

  def now():
    if not seen and logged(workdir, "denoiser") >= STEPS:
      seen.append(time.monotonic())
    return bool(seen) and time.monotonic() >= seen[0] + passed

  return now


MOMENTS = {
  moment.__name__: moment
  for moment in (meeting, compiling, first_step, kills.steps_on, saving, kills.evaluating)
  + (kills.encoding, between_stages, ending)
}


class Case(NamedTuple):
  moment: str
  signal: signal.Signals
  victim: int

  def __str__(self) -> str:
    return f"{self.signal.name} of process {self.victim} at {self.moment}"


class Outcome(NamedTuple):
  case: Case
  seconds: float  # from the signal to the end of the other, or to its line of waiting
  fault: str  # what was wrong, if anything
  met: bool = True  # whether the two had met


def strike(config: Path, workdir: Path, case: Case, draw: random.Random) -> Outcome | None:
  """One training of two processes, of which one is hit; None if it came to its end before."""
  reached = MOMENTS[case.moment](workdir, draw, 0)
  with both(config, workdir) as (started, logs):
    if not until(reached, started[0], deadline_s=4 * DEADLINE_S):  # a whole training, if it is the last step
      return None
    victim, other, log = started[case.victim], started[1 - case.victim], logs[1 - case.victim]
    if victim.poll() is not None:
      return None
    victim.send_signal(case.signal)
    return watched(case, other, log, time.monotonic())


def watched(case: Case, other: subprocess.Popen, log: Path, began: float) -> Outcome | None:
  """What the other process does from the signal on."""
  waiting = f"waiting for process {case.victim}"
  while time.monotonic() < began + DEADLINE_S:  # its start takes as long as the machine is busy
    lines, code, seconds = log_lines(log), other.poll(), time.monotonic() - began
    if code is None and waiting in "\n".join(lines):
      return Outcome(case, seconds, "", met=False)
    if code == 0:
      return None  # all had finished
    if code is not None:
      return Outcome(case, seconds, fault(case, code, log_lines(log), seconds))
    time.sleep(0.05)
  return Outcome(case, DEADLINE_S, f"neither an end nor a line: {log_lines(log)[-3:]}")


def fault(case: Case, code: int, lines: list[str], seconds: float) -> str:
  """What is wrong with the end of a process whose peer was hit."""
  naming = [line for line in lines if f"process {case.victim} of this run (on " in line]
  wrong = {
    f"exit code {code}": code != Preempted.EXIT_CODE,
    f"after {seconds:.1f} s": seconds > LIMIT_S,
    f"{len(naming)} lines that name it": len(naming) != 1,
    "a stack": any(word in line for line in lines for word in OF_CXX),
  }
  actual = ", ".join(text for text, is_wrong in wrong.items() if is_wrong)
  return f"{actual}: {lines[-3:]}" if actual else ""


def dealt(draw: random.Random) -> Iterator[Case]:
  """Cases without end: every moment comes before one comes again."""
  while True:
    for moment in draw.sample(sorted(MOMENTS), len(MOMENTS)):
      yield Case(moment, draw.choice(SIGNALS), draw.randrange(2))


def outcomes(folder: Path, count: int, seed: int) -> Iterator[Outcome]:
  """`count` outcomes; a workdir goes on from one to the next until both of its stages are trained."""
  config, draw, place = write_config(folder, STEPS, **CHANGES), random.Random(seed), 0
  for case in dealt(draw):
    workdir = folder / f"w{place}"
    if past(workdir, case.moment):
      shutil.rmtree(workdir)
      place += 1
      workdir = folder / f"w{place}"
    outcome = strike(config, workdir, case, draw)
    if outcome is None:
      continue
    yield outcome
    count -= 1
    if not count:
      return


def past(workdir: Path, moment: str) -> bool:
  """Whether the moment does not come any more in this workdir."""
  trained = [
    (workdirs.checkpoints_folder(workdir, stage) / f"{STEPS}.manifest.json").exists() for stage in STAGES
  ]
  return all(trained) or (trained[0] and moment in ("encoding", "between_stages"))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--count", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=Path, help="kept for looking at (default: a temporary one)")
  args = parser.parse_args()
  good, longest, kinds, began = 0, 0.0, collections.Counter(), time.monotonic()
  with tempfile.TemporaryDirectory() as temporary:
    folder = args.folder or Path(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    for outcome in outcomes(folder.absolute(), args.count, args.seed):
      print(f"{outcome.seconds:5.1f} s  {outcome.case}  {outcome.fault}", flush=True)
      good += not outcome.fault
      longest = max(longest, outcome.seconds * outcome.met)
      kinds[outcome.case.signal.name] += 1
  summary = ", ".join(f"{number} by {name}" for name, number in sorted(kinds.items()))
  print(
    f"{good} of {args.count} ({summary}) were noticed as they should be, the slowest after {longest:.1f} s; "
    f"{time.monotonic() - began:.0f} s in all"
  )


if __name__ == "__main__":
  main()
