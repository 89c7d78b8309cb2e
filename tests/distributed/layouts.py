"""Both stages and the sampler on 1, 2, 4 and 8 devices of 1 and 2 processes, by every kind of mesh:

  python -m tests.distributed.layouts [--folder DIR]

Each row is one to two real processes with fake devices.  They train three steps of both stages,
draw eight pictures, and save a state of each stage; when all rows have, each restores what every
row saved.  Told is how far losses and pictures are from those of one device, and how many bytes of
the denoiser's state a device holds.
"""

import argparse
from collections.abc import Iterable
import itertools
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jldm.distributed import multihost, sharding
from jldm.distributed.sharding import Layout
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.runs.train import train
from jldm.storage import array_cache
from jldm.storage.checkpoint import Checkpoints
from tests import compiling
from tests.configs import ROOT, STAGES, steps_of
from tests.distributed.test_meshes import bytes_on, experiment, first_state, losses, nbytes
from tests.faults.processes import DEADLINE_S, free_port

LABELS = tuple(range(8))
FLAGS = f"{compiling.FLAGS} --xla_force_host_platform_device_count="


class Row(NamedTuple):
  processes: int
  devices: int  # of all processes together
  fsdp: int = 1
  tensor: int = 1

  def __str__(self) -> str:
    return "-".join(map(str, self))

  @property
  def layout(self) -> Layout:
    return Layout(*self[1:])


ONE = Row(1, 1)
ROWS = tuple(
  dict.fromkeys(
    Row(count, devices, fsdp, tensor)
    for count, devices in itertools.product((1, 2), (1, 2, 4, 8))
    if devices >= count
    for fsdp, tensor in ((1, 1), (devices, 1), (1, 2), (2, 2))
    if devices % (fsdp * tensor) == 0
  )
)


# ---- what a row's processes do


def work(what: str, folder: Path, row: Row) -> None:
  array_cache.PART = 8  # so that two processes have parts to share
  {"make": make, "restore": restore}[what](folder, row)


def make(folder: Path, row: Row) -> None:
  """Trains, samples and saves."""
  workdir = folder / str(row)
  train(experiment(), workdir, devices=row.layout)
  model, params = load(folder / str(ONE))
  request = Request(n=len(LABELS), given={"label": LABELS})
  images = generate(model, params, request, steps_of(model, 3), devices=row.layout).data
  if multihost.is_primary():
    np.save(folder / f"{row}.npy", images)
  mesh = sharding.mesh_for(8, row.layout)
  for name in STAGES:
    with Checkpoints(folder / "states" / str(row) / name) as saved:
      saved.save(1, {"state": sharding.shard(mesh, first_state(name))})


def restore(folder: Path, row: Row) -> None:
  """Reads what all rows saved; AssertionError where a value differs."""
  mesh, held, count = sharding.mesh_for(8, row.layout), [], 0
  for name in STAGES:
    state = first_state(name)
    like = jax.tree.map(
      lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
      state,
      sharding.shardings_like(mesh, state),
    )
    for saved in sorted((folder / "states").iterdir()):
      with Checkpoints(saved / name, read_only=True) as there:
        actual = there.restore(there.latest(), {"state": like})["state"]
      jax.tree.map(np.testing.assert_array_equal, sharding.fetch(actual), state)
      count += 1
    held = max(bytes_on(device, actual) for device in jax.local_devices()), nbytes(state)
  if multihost.is_primary():
    (folder / f"{row}.json").write_text(json.dumps({"restored": count, "held": held[0], "whole": held[1]}))


# ---- what starts them


def start(what: str, folder: Path, row: Row) -> list[subprocess.Popen]:
  environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": f"{FLAGS}{row.devices // row.processes}"}
  command = [
    sys.executable,
    "-m",
    "tests.distributed.layouts",
    "--work",
    what,
    "--folder",
    str(folder),
    "--row",
    *map(str, row),
  ]
  if row.processes > 1:
    command += ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(row.processes), "--process"]
  started = []
  for process in range(row.processes):
    own = command + [str(process)] * (row.processes > 1)
    with (folder / f"{row}.{what}.{process}.log").open("w") as log:
      started.append(
        subprocess.Popen(own, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
      )
  return started


def run(what: str, folder: Path, row: Row) -> None:
  """Runs the processes of a row to their end, which they have a deadline for."""
  started = start(what, folder, row)
  try:
    codes = [process.wait(DEADLINE_S) for process in started]
  finally:
    for process in started:
      process.kill()
  if any(codes):
    logs = "\n".join(
      (folder / f"{row}.{what}.{process}.log").read_text()[-1500:] for process in range(row.processes)
    )
    raise AssertionError(f"{what} of {row} ended with {codes}: {logs}")


def measured(folder: Path, rows: Iterable[Row]) -> dict[Row, dict]:
  """All rows, ONE among them: how far each is from it, and what it restored."""
  rows, one = tuple(dict.fromkeys((ONE, *rows))), folder / str(ONE)
  for what in ("make", "restore"):
    for row in tqdm(rows, unit="row", desc=what):
      run(what, folder, row)
  return {row: json.loads((folder / f"{row}.json").read_text()) | apart(folder, row, one) for row in rows}


def apart(folder: Path, row: Row, one: Path) -> dict[str, float]:
  """How far a row's losses, in parts of the loss, and its pictures, in grey levels, are from those of
  one device.
  """
  here, there = losses(folder / str(row)), losses(one)
  assert len(there) == 6 and [each[:2] for each in here] == [each[:2] for each in there]
  far = max(abs(a[2] - b[2]) / abs(b[2]) for a, b in zip(here, there))
  images = [np.load(folder / f"{each}.npy").astype(int) for each in (row, ONE)]
  return {"losses": far, "levels": int(np.abs(images[0] - images[1]).max())}


def table(logs: dict[Row, dict]) -> list[str]:
  heads = ("processes", "devices", "fsdp", "tensor", "losses", "samples", "state a device", "restores")
  lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
  for row, each in logs.items():
    share = f"{each['held'] / 2**10:.0f} of {each['whole'] / 2**10:.0f} KiB"
    lines.append(
      f"| {' | '.join(map(str, row))} | {each['losses']:.1e} | {each['levels']} | {share} | "
      f"{each['restored']} of "
      f"{2 * len(logs)} |"
    )
  return lines


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--folder", type=Path, help="kept for looking at (default: a temporary one)")
  parser.add_argument("--work", help=argparse.SUPPRESS)
  parser.add_argument("--row", type=int, nargs=4, help=argparse.SUPPRESS)
  multihost.add_arguments(parser)
  args = parser.parse_args()
  if args.work:
    sharding.configure(args.row[1] // args.row[0], args)
    work(args.work, args.folder, Row(*args.row))
    return
  with tempfile.TemporaryDirectory() as temporary:
    folder = (args.folder or Path(temporary)).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    print("\n".join(table(measured(folder, ROWS))))


if __name__ == "__main__":
  main()
