"""SIGKILL at random moments of real trainings.

python -m tests.faults.kills --count 1000 --seed 0 [--folder DIR]

A tiny experiment is trained in one workdir after another; whenever a training dies, the same
command starts again.  Each is killed at a moment of a kind drawn at random: some seconds after its
start, right after it resumed, some steps on, while a checkpoint or the latents are being written,
in an evaluation, between the stages.  After every kill

  every step that was seen committed is still there, or a newer one of its stage is,
  the newest agrees with its manifest and is read,

and a workdir that comes to its end holds the same bits as that of a training that was never killed.
"""

import argparse
import collections
from collections.abc import Callable, Iterator
import itertools
from pathlib import Path
import random
import resource
import shutil
import signal
import tempfile
import time

from tqdm import tqdm

from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from tests.configs import STAGES
from tests.faults.processes import (
  DEADLINE_S,
  assert_same_bits,
  log_lines,
  logged,
  restored,
  running,
  until,
  write_config,
)

STEPS, SAVE_EVERY, PICTURE_EVERY = 24, 3, 4
CHANGES = {
  f"{stage}__{name}": value
  for stage in STAGES
  for name, value in (("save_every_steps", SAVE_EVERY), ("picture_every_steps", PICTURE_EVERY))
}


def steps_on(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """Some steps of the stage in progress have been logged since the start."""
  wanted = total(workdir) + draw.randint(1, 8)
  return lambda: total(workdir) >= wanted


def total(workdir: Path) -> int:
  return sum(logged(workdir, stage) for stage in STAGES)


def saving(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """A checkpoint is on disk without its manifest."""
  passed = draw.randint(0, 2)
  seen = set()

  def now():
    for stage in STAGES:
      folder = workdirs.checkpoints_folder(workdir, stage)
      names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
      seen.update(
        (stage, name.partition(".")[0])
        for name in names
        if name[0].isdigit() and f"{name.partition('.')[0]}.manifest.json" not in names
      )
    return len(seen) > passed

  return now


def encoding(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """The latents are being written."""
  return lambda: any(workdir.glob("latents/*/.*.partial"))


def evaluating(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """A step is logged after which comes an evaluation, whose picture is not there yet."""

  def now():
    at = [(stage, logged(workdir, stage)) for stage in STAGES]
    return any(
      step and step % PICTURE_EVERY == 0 and not (workdir / "images" / f"{stage}-{step:06d}.png").exists()
      for stage, step in at
    )

  return now


def resumed(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """A stage has begun: its progress bar is drawn."""
  log = workdir.with_suffix(".log")
  return lambda: b"step/s" in log.read_bytes()[began:]


def between_stages(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """The autoencoder is finished and the denoiser has logged nothing."""
  done = workdirs.checkpoints_folder(workdir, "autoencoder") / f"{STEPS}.manifest.json"
  return lambda: done.exists() and not logged(workdir, "denoiser")


def starting(workdir: Path, draw: random.Random, began: int) -> Callable[[], bool]:
  """At any moment from the start of the process on."""
  end = time.monotonic() + draw.uniform(0, 8)
  return lambda: time.monotonic() >= end


# How many of each are in a deck of 13.
MOMENTS = {starting: 1, resumed: 2, steps_on: 3, saving: 3, evaluating: 2, encoding: 1, between_stages: 1}


def committed(workdir: Path) -> dict[str, list[int]]:
  return {
    stage: [0, *Checkpoints(workdirs.checkpoints_folder(workdir, stage), read_only=True).steps()]
    for stage in STAGES
  }


def check(workdir: Path, before: dict[str, int]) -> dict[str, int]:
  """The newest committed step of each stage, all of which is read; AssertionError where one was lost
  or cannot be.
  """
  newest = {}
  for stage in STAGES:
    folder = workdirs.checkpoints_folder(workdir, stage)
    with Checkpoints(folder, read_only=True) as saved:
      steps, newest[stage] = saved.steps(), saved.latest() or 0
    assert newest[stage] == max(steps, default=0), f"{folder}: step {steps[-1]} was committed and is damaged"
    assert newest[stage] >= before[stage], f"{folder}: step {before[stage]} was committed and is gone"
    if newest[stage]:
      assert len(restored(folder / str(newest[stage]))) > 50
  return newest


def dealt(deck: list[Callable], draw: random.Random, before: dict[str, int]) -> Callable:
  """The next kind of a shuffled deck that can come yet; later decks have each as often as its share says."""
  while True:
    for place, moment in enumerate(deck):
      if before["autoencoder"] < STEPS or moment not in (encoding, between_stages):
        return deck.pop(place)
    every = [moment for moment, share in MOMENTS.items() for _ in range(share)]
    deck += draw.sample(every, len(every))


def kill(
  config: Path, workdir: Path, moment: Callable, draw: random.Random, before: dict
) -> tuple[str | None, dict[str, int]]:
  """One training until its moment: (its kind, or None where the training ended before it came; the
  newest steps).
  """
  log, delay = workdir.with_suffix(".log"), draw.uniform(0, 0.05)
  began = log.stat().st_size if log.exists() else 0
  with running(config, workdir, prefix=("nice", "-n", "10")) as process:
    if until(moment(workdir, draw, began), process):
      time.sleep(delay)
      before = {stage: max(before[stage], *steps) for stage, steps in committed(workdir).items()}
      process.send_signal(signal.SIGKILL)
    code = process.wait(DEADLINE_S)
  assert code in (0, -signal.SIGKILL), f"exit code {code}: {log_lines(log)[-3:]}"
  return (moment.__name__ if code else None), check(workdir, before)


def finish(config: Path, workdir: Path) -> None:
  with running(config, workdir) as process:
    assert process.wait(DEADLINE_S) == 0, log_lines(workdir.with_suffix(".log"))


def kills(folder: Path, count: int, seed: int) -> Iterator[tuple[str, int, float]]:
  """`count` kills, each as (its kind, the number of its workdir, its seconds); AssertionError at a fault.

  Each kind comes once before the first comes again.
  """
  config, draw, number = write_config(folder, STEPS, **CHANGES), random.Random(seed), 0
  deck = draw.sample(list(MOMENTS), len(MOMENTS))
  finish(config, folder / "unbroken")
  for place in itertools.count():
    workdir, newest = folder / f"killed-{place}", dict.fromkeys(STAGES, 0)
    while min(newest.values()) < STEPS and number < count:
      began = time.monotonic()
      kind, newest = kill(config, workdir, dealt(deck, draw, newest), draw, newest)
      if kind:
        number += 1
        yield kind, place, time.monotonic() - began
    finish(config, workdir)
    assert_same_bits(folder / "unbroken", workdir, STEPS)
    if number == count:
      return
    shutil.rmtree(workdir)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--count", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--folder", type=Path, help="kept for looking at (default: a temporary one)")
  args = parser.parse_args()
  counts, seconds, began = collections.Counter(), [], time.monotonic()
  with tempfile.TemporaryDirectory() as temporary:
    folder = args.folder or Path(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=args.count, unit="kill") as bar:
      for kind, place, spent in kills(folder.absolute(), args.count, args.seed):
        counts[kind] += 1
        seconds.append(spent)
        bar.update()
        bar.set_postfix_str(f"{kind.replace('_', ' ')} in workdir {place}")
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  summary = ", ".join(f"{number} {kind.replace('_', ' ')}" for kind, number in counts.most_common())
  print(
    f"{args.count} kills ({summary}); no committed checkpoint lost, the newest always read, {place + 1} "
    f"trainings ended with "
    f"the bits of the unbroken one; {sorted(seconds)[len(seconds) // 2]:.1f} s a kill (median), "
    f"{time.monotonic() - began:.0f} s in all, {used.ru_utime + used.ru_stime:.0f} s of them of one core"
  )


if __name__ == "__main__":
  main()
