import importlib.util
import io
import itertools
import json
import os
from pathlib import Path
import subprocess
import sys
import time
import types

import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jldm.core.errors import NonFiniteError, UserError
from jldm.media.images import encode_png
from jldm.train import logging
from jldm.train.logging import Log, drop_rows_after, read_rows, start_wandb
from jldm.train.optimizer import WarmupCosine
from jldm.train.step import SKIPS_ALLOWED


def lines(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def collect(log, steps, skips=None):
  for step in steps:
    skipped = skips[step] if skips else 0
    loss = jnp.float32(np.nan if skipped else step)
    log.collect(step, None, {"loss": loss, "grad_norm": jnp.float32(2 * step), "skipped": jnp.int32(skipped)})


def board_events(folder: Path) -> list[Event]:
  """What the one file of a board holds."""
  (path,) = folder.iterdir()
  data, events = path.read_bytes(), []
  while data:  # a record: its length, a checksum of that, its bytes, a checksum of them
    length = int.from_bytes(data[:8], "little")
    events.append(Event.FromString(data[12 : 12 + length]))
    data = data[16 + length :]
  return events


def test_a_line_is_the_means_since_the_last(tmp_path):
  with Log(tmp_path, "denoiser", 0, 5, 4) as log:
    collect(log, (1, 2, 3))
    log.write(3, None, {})
    log.write(3, None, {})  # says nothing twice
    collect(log, (4, 5))
    log.write(5, None, {})
  first, second = lines(tmp_path)
  assert first.pop("images_per_second") > 0 and second.pop("images_per_second") > 0
  assert first == {"stage": "denoiser", "step": 3, "loss": 2.0, "grad_norm": 4.0, "skipped": 0}
  assert second == {"stage": "denoiser", "step": 5, "loss": 4.5, "grad_norm": 9.0, "skipped": 0}
  assert list((tmp_path / "tb" / "denoiser").glob("events*"))


def test_images_per_second_are_those_of_the_batch(tmp_path, monkeypatch):
  now = [100.0]
  clock = lambda: now[0]
  monkeypatch.setattr(
    "jldm.train.logging.time", types.SimpleNamespace(perf_counter=clock, monotonic=clock, time=clock)
  )
  with Log(tmp_path, "denoiser", 0, 5, 4) as log:
    for step, seconds in ((3, 2.0), (6, 4.0)):
      collect(log, (step - 2, step - 1, step))
      now[0] += seconds
      log.write(step, None, {})
  assert [row["images_per_second"] for row in lines(tmp_path)] == [3 * 4 / 2.0, 3 * 4 / 4.0]


def test_a_clock_that_is_set_back_and_forth_changes_no_rate(tmp_path, monkeypatch):
  """Nor the seconds of the bar: half an hour each way, between any two readings."""
  wall, jumps = time.time, itertools.cycle((1800, -1800, 0))
  monkeypatch.setattr(time, "time", lambda: wall() + next(jumps))
  with Log(tmp_path, "denoiser", 0, 50, 4) as log:
    for step in range(1, 9):
      collect(log, (step,))
      log.write(step, None, {})
      assert 0 <= log.bar.format_dict["elapsed"] < 600
  assert all(row["images_per_second"] > 4 / 600 for row in lines(tmp_path))


def test_updates_not_made_are_counted_and_kept_out_of_the_means(tmp_path):
  with Log(tmp_path, "denoiser", 0, 6, 4) as log:
    collect(log, range(1, 5), {1: 0, 2: 1, 3: 2, 4: 0})
    log.write(4, None, {})
    collect(log, (5, 6), {5: 1, 6: 2})
    log.write(6, None, {})
  some, none = lines(tmp_path)
  assert (some["loss"], some["grad_norm"], some["skipped"]) == (2.5, 5.0, 2)
  assert none["skipped"] == 2 and "loss" not in none, "there is nothing to average"
  assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("first_bad, logged_at", [(1, (10,)), (1, (12,)), (4, (8, 16)), (21, (20, 40))])
def test_ten_in_a_row_stop_the_run_naming_the_step(tmp_path, first_bad, logged_at):
  skips = {step: max(0, step - first_bad + 1) for step in range(1, 50)}
  start = 0
  with Log(tmp_path, "denoiser", 0, 50, 4) as log:
    for stop in logged_at:
      collect(log, range(start + 1, stop + 1), skips)
      if stop < first_bad + SKIPS_ALLOWED - 1:
        log.write(stop, None, {})
      start = stop
    last = first_bad + SKIPS_ALLOWED - 1
    with pytest.raises(NonFiniteError, match=f"denoiser: 10 non-finite updates in a row, up to step {last}$"):
      log.write(stop, None, {})


def test_nine_in_a_row_do_not(tmp_path):
  with Log(tmp_path, "denoiser", 0, 50, 4) as log:
    collect(log, range(1, 11), dict(enumerate([*range(1, 10), 0], 1)))
    log.write(10, None, {})
  assert lines(tmp_path)[0]["skipped"] == 9


@pytest.mark.parametrize(("stop", "hours"), [(10_000, "2.8"), (3_000, None)])
def test_a_training_of_hours_is_told_of_once_by_the_rate_without_compilation(
  tmp_path, monkeypatch, capsys, stop, hours
):
  """Two steps in 100 s, which compile, then one a second."""
  now = iter([0.0, 100.0, 100.0, 102.0, 102.0, 104.0, 104.0])
  monkeypatch.setattr(logging.time, "perf_counter", lambda: next(now))
  with Log(tmp_path, "denoiser", 0, stop, 4, advice="smaller denoiser.steps take less") as log:
    for step in (2, 4, 6):
      collect(log, (step - 1, step))
      log.write(step, None, {})
  told = [line for line in capsys.readouterr().out.splitlines() if "hours" in line]
  line = f"denoiser: about {hours} hours are left at 1 s per step; smaller denoiser.steps take less"
  assert told == ([line] if hours else [])


def test_other_values_are_recorded_as_they_are(tmp_path):
  with Log(tmp_path, "autoencoder", 0, 5, 4) as log:
    log.record(5, {"held_out_psnr": 21.5})
  assert lines(tmp_path) == [{"stage": "autoencoder", "step": 5, "held_out_psnr": 21.5}]


def test_the_board_is_read_back_by_tensorboards_own_format(tmp_path):
  with Log(tmp_path, "denoiser", 4, 9, 4) as log:
    log.record(5, {"held_out_psnr": 21.5})
  events = board_events(tmp_path / "tb" / "denoiser")
  start, point = events[1], events[2].summary.value[0]
  assert (start.step, start.session_log.status) == (5, SessionLog.START), (
    "what was there of later steps is purged"
  )
  assert (events[2].step, point.tag, point.simple_value) == (5, "held_out_psnr", 21.5)


def test_a_full_disk_is_reported_of_at_once(tmp_path):
  with Log(tmp_path, "denoiser", 0, 50, 4) as log:
    log.path = Path("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
      log.record(1, {"held_out_psnr": 21.5})
    with open("/dev/full", "wb", buffering=0) as full:
      log.board.writer._py_recordio_writer._writer, own = full, log.board.writer._py_recordio_writer._writer
      with pytest.raises(OSError, match="No space left on device"):
        log.board.add_scalars(1, {"held_out_psnr": 21.5})
    log.board.writer._py_recordio_writer._writer = own


@pytest.mark.parametrize(
  "junk",
  [
    b"5",
    b"[]",
    b'{"step": 1}',
    b'{"stage": "denoiser", "step": "1"}',
    b'{"stage": 1, "step": 1}',
    b"\xff\xfe",
    b"[" * 100_000,
    b"{}",
  ],
)
def test_what_is_not_a_line_of_it_is_left_out(tmp_path, junk):
  path, line = tmp_path / "metrics.jsonl", json.dumps(ROWS[0]).encode()
  path.write_bytes(line + b"\n" + junk + b"\n" + line + b"\n")
  assert [row for _, row in read_rows(path)] == [ROWS[0], ROWS[0]]
  drop_rows_after(path, "denoiser", 0)
  assert path.read_bytes() == (line + b"\n") * 2


ROWS = [
  {"stage": "autoencoder", "step": 10, "loss": 1.0},
  {"stage": "autoencoder", "step": 40, "loss": 0.5},
  {"stage": "denoiser", "step": 10, "loss": 3.0},
  {"stage": "denoiser", "step": 20, "loss": 2.0},
  {"stage": "denoiser", "step": 30, "loss": 1.0},
]


@pytest.mark.parametrize("tail", ["", '{"stage": "denoiser", "st', '{"stage": "autoenc', "{"])
@pytest.mark.parametrize(
  "stage, step, kept",
  [
    ("denoiser", 0, [0, 1]),
    ("denoiser", 20, [0, 1, 2, 3]),
    ("denoiser", 25, [0, 1, 2, 3]),
    ("denoiser", 30, [0, 1, 2, 3, 4]),
    ("autoencoder", 10, [0, 2, 3, 4]),
  ],
)
def test_what_will_be_written_again_is_forgotten(tmp_path, tail, stage, step, kept):
  path = tmp_path / "metrics.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in ROWS) + tail)
  drop_rows_after(path, stage, step)
  assert path.read_text() == "".join(json.dumps(ROWS[i]) + "\n" for i in kept)
  assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_text(json.dumps(ROWS[0]))
  drop_rows_after(path, "denoiser", 0)
  assert path.read_text() == json.dumps(ROWS[0]) + "\n"


def test_a_line_has_the_rate_of_its_last_update(tmp_path):
  rate = WarmupCosine(peak=0.5, end=0.0, warmup_steps=2).build(6)
  with Log(tmp_path, "denoiser", 0, 6, 4, learning_rate=rate) as log:
    for steps in (range(1, 4), range(4, 7)):
      collect(log, steps)
      log.write(steps[-1], None, {})
  # up to the peak in two updates, then half a cosine over the other four
  expected = [0.5, 0.25 * (1 + np.cos(np.pi * 3 / 4))]
  np.testing.assert_allclose([row["learning_rate"] for row in lines(tmp_path)], expected, rtol=1e-6)


def test_pictures_are_on_the_board_and_in_the_run(tmp_path, fake):
  image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
  png, run = encode_png(image, {}), Run()
  with Log(tmp_path, "denoiser", 0, 6, 4, wandb=run) as log:
    log.record_picture(3, "samples", image, png)
  assert run.rows == [{"denoiser/step": 3, "denoiser/samples": ("Image", image.shape)}]
  events = board_events(tmp_path / "tb" / "denoiser")
  (value,) = [value for event in events for value in event.summary.value]
  assert (value.tag, value.image.height, value.image.width, value.image.colorspace) == ("samples", 2, 4, 3)
  np.testing.assert_array_equal(Image.open(io.BytesIO(value.image.encoded_image_string)), image)


def test_there_may_be_nothing_to_forget(tmp_path):
  drop_rows_after(tmp_path / "metrics.jsonl", "denoiser", 3)
  assert not list(tmp_path.iterdir())


def test_a_resumed_stage_continues_its_lines(tmp_path):
  for start in (0, 2):
    with Log(tmp_path, "denoiser", start, 4, 1) as log:
      for step in range(start + 1, 5):
        collect(log, (step,))
        log.write(step, None, {})
  assert [row["step"] for row in lines(tmp_path)] == [1, 2, 3, 4]


# ---- Weights & Biases


class Run:
  """The calls that a run makes of the package."""

  def __init__(self, **options):
    self.options, self.rows, self.metrics = options, [], {}

  def define_metric(self, name, step_metric=None):
    self.metrics[name] = step_metric

  def log(self, row):
    self.rows.append(row)


class Refusal(Exception):
  pass


@pytest.fixture
def fake(monkeypatch):
  """A package of that name."""
  package = types.SimpleNamespace(
    init=lambda **options: Run(**options), Error=Refusal, Image=lambda image: ("Image", image.shape)
  )
  monkeypatch.setitem(sys.modules, "wandb", package)
  return package


def test_both_stages_go_into_one_run_under_steps_of_their_own(tmp_path):
  run = Run()
  for stage in ("autoencoder", "denoiser"):
    with Log(tmp_path, stage, 0, 2, 4, wandb=run) as log:
      for step in (1, 2):
        collect(log, (step,))
        log.write(step, None, {})
  printed = [
    {name.partition("/")[2]: value for name, value in row.items()}
    | {"stage": next(iter(row)).partition("/")[0]}
    for row in run.rows
  ]
  assert printed == lines(tmp_path) and len(printed) == 4
  assert run.metrics["autoencoder/*"] == "autoencoder/step" and run.metrics["denoiser/*"] == "denoiser/step"


def test_a_run_keeps_its_files_in_the_workdir(tmp_path, fake):
  config = {"class": "Experiment", "seed": 0}
  (tmp_path / "digits").mkdir()
  run = start_wandb("pictures", tmp_path / "digits", config)
  name = run.options.pop("id")
  assert run.options == {
    "project": "pictures",
    "resume": "allow",
    "name": "digits",
    "dir": str(tmp_path / "digits"),
    "config": config,
  }
  assert (tmp_path / "digits" / "wandb" / "id").read_text().strip() == name


def test_a_workdir_goes_on_with_its_run_wherever_it_is(tmp_path, fake, monkeypatch):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
  first, again, other = (start_wandb("p", tmp_path / name, {}).options["id"] for name in "aab")
  assert first == again != other
  (tmp_path / "a").rename(tmp_path / "c")
  monkeypatch.chdir(tmp_path)
  moved = start_wandb("p", tmp_path.__class__("c"), {}).options
  assert moved["id"] == first and moved["dir"] == str(tmp_path / "c")


def test_an_id_that_a_kill_left_empty_is_made_anew(tmp_path, fake):
  (tmp_path / "wandb").mkdir()
  (tmp_path / "wandb" / "id").write_text("")
  assert start_wandb("p", tmp_path, {}).options["id"] == start_wandb("p", tmp_path, {}).options["id"] != ""


def test_a_package_that_is_missing_is_reported_how_to_get(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match=r"--wandb needs .*pip install 'jldm\[wandb\]'"):
    start_wandb("p", tmp_path, {})
  monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))  # as a folder ./wandb is
  with pytest.raises(UserError, match=r"not installed; pip install 'jldm\[wandb\]'"):
    start_wandb("p", tmp_path, {})
  assert not list(tmp_path.iterdir())


def test_a_run_that_does_not_start_is_one_line(tmp_path, fake):
  def init(**options):
    raise Refusal("No API key\nconfigured.")

  fake.init = init
  with pytest.raises(UserError, match=r"did not start \(No API key configured\.\); run 'wandb login'"):
    start_wandb("p", tmp_path, {})


OFFLINE = """
import sys
import time
from pathlib import Path
import jax.numpy as jnp
from jldm.train.logging import Log, start_wandb
workdir = Path(sys.argv[1])
run = start_wandb("test", workdir, {"seed": 0, "data": {"buckets": [[1, 2]]}})
for stage in ("autoencoder", "denoiser"):
  with Log(workdir, stage, 0, 2, 4, wandb=run) as log:
    for step in (1, 2):
      log.collect(step, None, {"loss": jnp.float32(step), "skipped": jnp.int32(0)})
      log.write(step, None, {})
print(run.id, run.summary["autoencoder/step"], run.summary["denoiser/loss"])
run.finish()
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the package wandb")
def test_the_package_itself_without_a_network(tmp_path):
  environment = os.environ | {
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "HOME": str(tmp_path / "home"),
    "PYTHONPATH": ":".join(filter(None, sys.path)),
  }
  (tmp_path / "w").mkdir()
  printed = [
    subprocess.run(
      [sys.executable, "-c", OFFLINE, str(tmp_path / "w")],
      env=environment,
      cwd=tmp_path,
      check=True,
      capture_output=True,
      text=True,
      timeout=120,
    ).stdout
    for _ in range(2)
  ]
  assert printed[0] == printed[1] and printed[0].split()[1:] == ["2", "2"]
  assert len(list((tmp_path / "w" / "wandb").glob(f"offline-run-*-{printed[0].split()[0]}"))) == 2
  assert not (tmp_path / "wandb").exists()
