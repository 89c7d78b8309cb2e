"""Two processes of one run that judge and keep checkpoints beside the newest."""

import json

import numpy as np
import pytest

from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from tests.faults.processes import DEADLINE_S, both, log_lines, running, write_config

pytestmark = pytest.mark.slow


def test_what_is_judged_and_kept_beside_the_newest_is_what_one_process_keeps(tmp_path):
  """Three folders of checkpoints are saved to after one step; classes are balanced, and patience counts."""
  every = dict(
    snapshot_every_steps=2, save_every_steps=2, picture_every_steps=2, ema="Power((0.05, 0.1))", patience=1
  )
  judged = dict(extractor="pixels", n=250, every_steps=2, metric="kid")
  config = write_config(
    tmp_path,
    4,
    data__count=300,
    data__balance=True,
    **{f"denoiser__{name}": value for name, value in every.items()},
    **{f"evaluation__{name}": value for name, value in judged.items()},
  )
  one, two = tmp_path / "one", tmp_path / "two"
  with both(config, two) as (started, logs):
    assert [process.wait(DEADLINE_S) for process in started] == [0, 0], [log_lines(log)[-3:] for log in logs]
  assert not [line for line in log_lines(logs[1]) if "Gloo" not in line], "the first alone speaks"
  with running(config, one) as process:
    assert process.wait(DEADLINE_S) == 0
  values = [
    [
      json.loads((workdir / "evaluation" / f"{step}.json").read_text())["metrics"]["kid"]["value"]
      for step in (2, 4)
    ]
    for workdir in (one, two)
  ]
  np.testing.assert_allclose(*values, rtol=1e-2)
  rows = [[json.loads(line) for line in (workdir / "metrics.jsonl").open()] for workdir in (one, two)]
  losses = [[row["held_out_loss"] for row in each if "held_out_loss" in row] for each in rows]
  assert len(losses[0]) == 2
  np.testing.assert_allclose(*losses, rtol=1e-3)
  for kept in (workdirs.averages_folder, workdirs.best_folder, workdirs.checkpoints_folder):
    steps = [Checkpoints(kept(workdir, "denoiser"), read_only=True).steps() for workdir in (one, two)]
    assert steps[0] == steps[1] and steps[0], kept
