"""Where a run's numbers go: metrics.jsonl, TensorBoard and a progress bar."""

import json
import os
from pathlib import Path
import sys
import time

import jax
import numpy as np
from tensorboardX import SummaryWriter
from tqdm import tqdm

from jldm.core.errors import NonFiniteError
from jldm.train.step import SKIPS_ALLOWED


def forget_after(path: Path, stage: str, step: int) -> None:
  """Removes from metrics.jsonl what a resumed stage is about to write again, and a half-written last line."""
  if not path.exists():
    return
  kept = []
  for line in path.read_text().splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    if row.get("stage") != stage or row.get("step", 0) <= step:
      kept.append(line + "\n")
  partial = path.with_suffix(".partial")
  partial.write_text("".join(kept))
  os.replace(partial, path)


class Log:
  """Means over the steps since the last line, written every `every_steps`; a context manager.

  `collect` is for every step and keeps device arrays; `write` waits for them.  Ten non-finite updates in a row raise
  NonFiniteError.
  """

  def __init__(self, workdir: Path, stage: str, start: int, stop: int, batch_size: int):
    self.path, self.stage, self.batch_size = workdir / "metrics.jsonl", stage, batch_size
    forget_after(self.path, stage, start)
    self.board = SummaryWriter(str(workdir / "tb" / stage), purge_step=start + 1)
    quiet = {} if sys.stderr.isatty() else {"mininterval": 10}
    self.bar = tqdm(total=stop, initial=start, desc=stage, unit="step", dynamic_ncols=True, **quiet)
    self.pending, self.since = [], time.perf_counter()

  def __enter__(self) -> "Log":
    return self

  def __exit__(self, *error) -> None:
    self.bar.close()
    self.board.close()

  def collect(self, step: int, state, metrics: dict) -> None:
    del step, state
    self.pending.append(metrics)
    self.bar.update()

  def write(self, step: int, state, metrics: dict) -> None:
    """One line of means; `skipped` is the number of updates not made."""
    del state, metrics
    rows, self.pending = jax.device_get(self.pending), []
    elapsed, self.since = time.perf_counter() - self.since, time.perf_counter()
    skips = [int(row["skipped"]) for row in rows]
    if max(skips) >= SKIPS_ALLOWED:
      first = step - len(rows) + 1 + next(i for i, n in enumerate(skips) if n >= SKIPS_ALLOWED)
      raise NonFiniteError(f"{self.stage}: {SKIPS_ALLOWED} non-finite updates in a row, up to step {first}")
    made = [row for row in rows if not row["skipped"]]
    means = {name: float(np.mean([row[name] for row in made])) for name in rows[0]} if made else {}
    speed = len(rows) * self.batch_size / elapsed
    self.record(step, means | {"skipped": sum(n > 0 for n in skips), "images_per_second": round(speed, 1)})
    self.bar.set_postfix_str(f"loss {means.get('loss', float('nan')):.4f}, {speed:.0f} images/s", refresh=False)

  def record(self, step: int, values: dict[str, float]) -> None:
    """One line in metrics.jsonl and one point a value on the board."""
    with self.path.open("a") as file:
      file.write(json.dumps({"stage": self.stage, "step": step} | values) + "\n")
    for name, value in values.items():
      self.board.add_scalar(name, value, step)
