"""A run's metrics: metrics.jsonl, TensorBoard, a progress bar and, optionally, Weights & Biases."""

from collections.abc import Callable, Iterator
import json
import os
from pathlib import Path
import re
import secrets
import sys
import time
from typing import Any

import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import scalar
from tqdm import tqdm

from jldm.core.errors import NonFiniteError, UserError
from jldm.core.files import replace_file
from jldm.distributed import multihost
from jldm.train.step import SKIPS_ALLOWED

LONG_S = 3600  # of a stage, which are told of
FLUSH_S = 10  # of the board, whose flush waits for the disk


def drop_rows_after(path: Path, stage: str, step: int) -> int:
  """Removes the rows of metrics.jsonl that a resumed stage will write again, and broken lines.

  Returns the last step of the stage in the file.
  """
  if not path.exists():
    return 0
  if not path.is_file():
    raise UserError(f"{str(path)!r} is a folder, a pipe or a device; expected a file; remove what is there")
  every = list(read_rows(path))
  with replace_file(path, partial=path.with_suffix(".partial").name) as file:
    file.writelines(line + b"\n" for line, row in every if row["stage"] != stage or row["step"] <= step)
  return max((row["step"] for _, row in every if row["stage"] == stage), default=0)


def read_rows(path: Path) -> Iterator[tuple[bytes, dict]]:
  """The lines of metrics.jsonl, raw and parsed, without half lines that a kill or a full disk left."""
  for line in path.read_bytes().split(b"\n") if path.is_file() else ():
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      continue
    if isinstance(row, dict) and isinstance(row.get("stage"), str) and type(row.get("step")) is int:
      yield line, row


def mean_metrics(metrics: list[dict]) -> dict[str, float]:
  """The mean of every metric over the steps that were made, and the number of `skipped` ones."""
  made = [row for row in metrics if not row["skipped"]]
  averages = {name: float(np.mean([row[name] for row in made])) for name in metrics[0]} if made else {}
  return averages | {"skipped": len(metrics) - len(made)}


def import_wandb() -> Any:
  """The package; UserError if it is not installed."""
  try:
    import wandb
  except ImportError as error:
    raise UserError(
      f"--wandb needs a package that cannot be imported ({error}); pip install 'jldm[wandb]'"
    ) from error
  if not hasattr(wandb, "init"):  # a folder ./wandb that the package left behind imports as an empty one
    raise UserError("--wandb needs the package wandb, which is not installed; pip install 'jldm[wandb]'")
  return wandb


def start_wandb(project: str, workdir: Path, config: dict) -> Any:
  """A Weights & Biases run that keeps its files in workdir/wandb; the same workdir goes on with the same run.

  Its random name is in workdir/wandb/id: a hash of the path would join the runs of two machines.
  `workdir` must exist.  wandb's own settings choose the server, or offline mode.

  Raises:
    UserError: wandb is not installed, or does not start.
  """
  wandb = import_wandb()
  path = workdir / "wandb" / "id"
  path.parent.mkdir(exist_ok=True)
  name = path.read_text(errors="replace").strip() if path.exists() else ""
  # wandb makes a folder of that name; a kill may leave the file empty or damaged
  if not re.fullmatch(r"[\w-]{1,64}", name):
    name = secrets.token_hex(4)
    path.write_text(name + "\n")
  where = workdir.resolve()
  try:
    return wandb.init(
      project=project, id=name, resume="allow", name=where.name, dir=str(where), config=config
    )
  except wandb.Error as error:
    reason = " ".join(str(error).split())
    raise UserError(
      f"Weights & Biases did not start ({reason}); "
      "run 'wandb login', set WANDB_MODE=offline, or leave --wandb out"
    ) from error


class Board:
  """TensorBoard's file of a stage, without what an earlier run wrote of steps after `start`.

  This thread writes it.  SummaryWriter's own thread ends when the disk is full, and then whoever logs
  to it waits forever.
  """

  def __init__(self, folder: Path, start: int):
    folder.mkdir(parents=True, exist_ok=True)
    self.writer, self.flushed = EventsWriter(str(folder / "events"), f".{os.getpid()}.{start}"), 0.0
    self.add(start + 1, session_log=SessionLog(status=SessionLog.START))

  def add(self, step: int, **what: Any) -> None:
    self.writer.write_event(Event(wall_time=time.time(), step=step, **what))

  def add_scalars(self, step: int, values: dict[str, float]) -> None:
    for name, value in values.items():
      self.add(step, summary=scalar(name, value))
    if time.monotonic() > self.flushed + FLUSH_S:
      self.writer.flush()
      self.flushed = time.monotonic()

  def add_png(self, step: int, name: str, png: bytes, shape: tuple[int, ...]) -> None:
    height, width, channels = shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png)
    self.add(step, summary=Summary(value=[Summary.Value(tag=name, image=image)]))

  def close(self) -> None:
    self.writer.close()


class Bar(tqdm):
  """A progress bar whose rate and remaining time go by a clock that nobody sets."""

  def __init__(self, **options: Any):
    super().__init__(**options)
    self._time = time.monotonic
    self.start_t = self.last_print_t = time.monotonic()


class Log:
  """A context manager that logs means of the metrics over the steps since the last line.

  Call `collect` after every step: it keeps device arrays.  `write` waits for them.  It raises
  NonFiniteError after ten non-finite updates in a row.  With several processes only the first writes.

  `learning_rate` maps the number of updates made to the rate of the next; every line has the rate of
  its last update.

  The second line of a process, the first without compilation, tells of an hour or more that is left, with
  `advice` on what takes less.

  `wandb` is a run of `start_wandb`.  It gets every line under names such as "denoiser/loss" over
  "denoiser/step": all stages share one run, whose own step count must never go back.
  """

  def __init__(
    self,
    workdir: Path,
    stage: str,
    start: int,
    stop: int,
    batch_size: int,
    wandb: Any = None,
    learning_rate: Callable[[int], Any] | None = None,
    advice: str = "",
  ):
    self.path, self.stage, self.batch_size = workdir / "metrics.jsonl", stage, batch_size
    self.writes = multihost.is_primary()
    # the last step of a killed run
    self.made_before = drop_rows_after(self.path, stage, start) if self.writes else 0
    self.board = Board(workdir / "tb" / stage, start) if self.writes else None
    quiet = {} if sys.stderr.isatty() else {"mininterval": 10}
    shown = {
      "total": stop,
      "initial": start,
      "desc": stage,
      "unit": "step",
      "dynamic_ncols": True,
      "disable": not self.writes,
    }
    self.bar = Bar(**shown, **quiet)
    self.pending, self.since = [], time.perf_counter()
    self.wandb, self.learning_rate = wandb, learning_rate and jax.jit(learning_rate)  # op by op is 9 programs
    self.advice, self.stop, self.lines = advice, stop, 0
    if wandb is not None:
      wandb.define_metric(f"{stage}/step")
      wandb.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

  def __enter__(self) -> "Log":
    return self

  def __exit__(self, *error) -> None:
    self.bar.close()
    if self.writes:
      self.board.close()

  def collect(self, step: int, state, metrics: dict) -> None:
    del step, state
    self.pending.append(metrics)
    self.bar.update()

  def write(self, step: int, state, metrics: dict) -> None:
    """Writes a line of means over the steps since the last line, if any; `skipped` counts skipped updates."""
    del state, metrics
    if not self.pending:
      return
    rows, self.pending = jax.device_get(self.pending), []
    elapsed, self.since = time.perf_counter() - self.since, time.perf_counter()
    skips = [int(row["skipped"]) for row in rows]
    if max(skips) >= SKIPS_ALLOWED:
      first = step - len(rows) + 1 + next(i for i, n in enumerate(skips) if n >= SKIPS_ALLOWED)
      raise NonFiniteError(f"{self.stage}: {SKIPS_ALLOWED} non-finite updates in a row, up to step {first}")
    averages, speed = mean_metrics(rows), len(rows) * self.batch_size / elapsed
    rate = {} if self.learning_rate is None else {"learning_rate": float(self.learning_rate(step - 1))}
    self.record(step, averages | rate | {"images_per_second": round(speed, 1)})
    self.lines += 1
    if self.lines == 2:
      self.tell_long_training(step, elapsed / len(rows))
    loss = averages.get("loss", float("nan"))
    self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} images/s", refresh=False)

  def tell_long_training(self, step: int, seconds: float) -> None:
    """Prints how long the rest of the stage takes at so many seconds per step, if it is LONG_S or more."""
    left = (self.stop - step) * seconds
    if left >= LONG_S:
      more = f"; {self.advice}" if self.advice else ""
      self.print_line(
        f"{self.stage}: about {left / 3600:.1f} hours are left at {seconds:.2g} s per step{more}"
      )

  def record(self, step: int, values: dict[str, float]) -> None:
    """Writes one line to metrics.jsonl, and each value to TensorBoard and to Weights & Biases."""
    if not self.writes:
      return
    with self.path.open("a") as file:
      file.write(json.dumps({"stage": self.stage, "step": step} | values) + "\n")
    self.board.add_scalars(step, values)
    if self.wandb is not None:
      self.wandb.log({f"{self.stage}/{name}": value for name, value in ({"step": step} | values).items()})

  def record_picture(self, step: int, name: str, image: np.ndarray, png: bytes) -> None:
    """Gives a picture, uint8 [H, W, C] and its PNG, to TensorBoard and to Weights & Biases."""
    if not self.writes:
      return
    self.board.add_png(step, name, png, image.shape)
    if self.wandb is not None:
      picture = import_wandb().Image(image)
      self.wandb.log({f"{self.stage}/step": step, f"{self.stage}/{name}": picture})

  def print_line(self, line: str) -> None:
    """A line above the bar."""
    if self.writes:
      self.bar.write(line)
