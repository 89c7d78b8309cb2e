"""The held-out loss of a denoiser by noise level: what it is of, and what it does not depend on."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jldm.config.override import override
from jldm.data.synthetic import Synthetic
from jldm.inference.load import load
from jldm.inference.model import find_stage
from jldm.runs import held_out, run as runs
from jldm.runs.frozen import load_frozen
from tests.trained import STEPS

NAMES = [held_out.FIGURE, *(f"{held_out.FIGURE}/t{t}" for t in held_out.LEVELS)]


class Written:
  """A log that keeps what it is given."""

  def __init__(self):
    self.rows, self.lines = [], []

  def record(self, step, values):
    self.rows.append({"step": step} | values)

  def print_line(self, line):
    self.lines.append(line)


def measured(workdir, devices=1, change=lambda experiment: experiment, shift=0.0):
  """What is logged of the finished denoiser of a workdir, by a measurement made anew."""
  at = find_stage(workdir, "denoiser")
  changed = change(at.experiment)
  run = runs.Run(at._replace(experiment=changed, stage=changed.stage("denoiser")), devices)
  mesh = runs.mesh_for_stage(run.stage, devices)
  params = {name: value for name, value in load(workdir)[1].items() if name != "codec"}
  params = jax.tree.map(lambda x: x + np.float32(shift), params)
  log, data = Written(), changed.data
  hooks = held_out.measure_loss(run, load_frozen(run, mesh), data.open(data.held_out), mesh)(log)
  for hook in hooks:
    hook.call(STEPS, SimpleNamespace(ema=(params,), extra={}), {})
  return log


def logged(workdir):
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return [row for row in rows if held_out.FIGURE in row]


def test_the_log_has_it_and_another_process_measures_the_same_bits(unbroken):
  (row,) = logged(unbroken)
  (again,) = (log := measured(unbroken)).rows
  assert row == {"stage": "denoiser"} | again and row["step"] == STEPS and list(again) == ["step", *NAMES]
  assert row[NAMES[0]] == pytest.approx(np.mean([row[name] for name in NAMES[1:]]), rel=1e-6)
  assert f"held-out loss {row[NAMES[0]]:.4f}: {row[NAMES[1]]:.4f} at t=0.1" in log.lines[0]


@pytest.mark.slow
def test_neither_devices_nor_batches_change_it_and_examples_and_parameters_do(unbroken):
  (row,) = logged(unbroken)
  of = lambda values: np.array([values[name] for name in NAMES])
  larger = measured(unbroken, 4, lambda experiment: override(experiment, "denoiser.batch_size", "24"))
  np.testing.assert_allclose(of(larger.rows[0]), of(row), rtol=1e-4)
  other = measured(unbroken, change=lambda experiment: override(experiment, "data.held_out", "other"))
  assert (of(other.rows[0]) != of(row)).all()
  assert (np.abs(of(measured(unbroken, shift=0.1).rows[0]) - of(row)) > 0.01).all()


def test_without_a_split_that_is_held_out_there_is_none(unbroken):
  all_trained = lambda experiment: override(experiment, "data.held_out", "train")
  assert not measured(unbroken, change=all_trained).rows


def test_examples_are_some_of_every_shape():
  data = Synthetic(channels=1, count=2000, height=4, width=4, buckets=((4, 8), (8, 4)))
  chosen = held_out.choose_examples(data.open("test"))
  assert [each.arrays["image"].shape[1:3] for each in chosen] == [(4, 4), (4, 8), (8, 4)]
  assert held_out.MOST <= sum(map(len, chosen)) <= held_out.MOST + 2
  (few,) = held_out.choose_examples(dataclasses.replace(data, count=20, buckets=()).open("test"))
  assert len(few) == 20
