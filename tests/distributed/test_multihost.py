"""How a process learns of others, without any; tests/processes and tests/faults/test_several.py have real
ones.
"""

import argparse
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from jldm.cli import main
from jldm.core.errors import UserError
from jldm.distributed import multihost, sharding
from tests.configs import ROOT
from tests.faults.processes import free_port


def parsed(*argv: str) -> argparse.Namespace:
  parser = argparse.ArgumentParser()
  multihost.add_arguments(parser)
  return parser.parse_args(argv)


class Meeting:
  """A watch whose others are always there."""

  jax_address = "127.0.0.1:1"

  def __init__(self, address, count, number, exit_lost):
    self.count, self.number = count, number

  def start(self):
    pass

  def meet(self, limit_s):
    pass


@pytest.fixture
def joined(monkeypatch):
  """Where each call looked for the others: coordinator, processes and process as they were given."""
  calls = []

  def detect(*given):
    calls.append(given[:3])
    return ("host:1234", 2, 0, None)

  for variable, _ in multihost.LAUNCHERS.values():
    monkeypatch.delenv(variable, raising=False)
  monkeypatch.setattr(multihost, "Watch", Meeting)
  monkeypatch.setattr(multihost.ClusterEnv, "auto_detect_unset_distributed_params", detect)
  monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: None)
  monkeypatch.setattr(multihost.signal, "signal", lambda *args: None)
  monkeypatch.setattr(multihost.atexit, "register", lambda *args: None)
  for where, name in ((sys, "excepthook"), (threading, "excepthook"), (multihost.CONNECTED, "watch")):
    monkeypatch.setattr(where, name, vars(where)[name])
  return calls


def test_one_process_joins_nobody(joined):
  multihost.connect(parsed())
  assert not joined and not multihost.is_multiprocess() and multihost.is_primary()


@pytest.mark.parametrize(
  "variable, alone, several",
  [
    ("SLURM_STEP_NUM_TASKS", "1", "2"),
    ("OMPI_COMM_WORLD_SIZE", "1", "16"),
    ("TPU_WORKER_HOSTNAMES", "localhost", "a.b,c.d"),
    ("MEGASCALE_NUM_SLICES", "1", "2"),
  ],
)
def test_the_environment_says_that_there_are_others(joined, monkeypatch, variable, alone, several):
  monkeypatch.setenv(variable, alone)
  multihost.connect(parsed())
  assert not joined
  monkeypatch.setenv(variable, several)
  multihost.connect(parsed())
  assert joined == [(None, None, None)]


def test_options_say_it(joined):
  multihost.connect(parsed("--distributed"))
  multihost.connect(parsed("--coordinator", "host:1234", "--processes", "3", "--process", "2"))
  assert joined == [(None, None, None), ("host:1234", 3, 2)]


@pytest.mark.parametrize(
  "argv",
  [
    ("--processes", "2", "--process", "0"),
    ("--coordinator", "host:1"),
    ("--process", "0"),
    ("--coordinator", "host", "--processes", "2", "--process", "0"),
    ("--coordinator", "host:1", "--processes", "2", "--process", "2"),
    ("--coordinator", "host:1", "--processes", "2", "--process", "-1"),
  ],
)
def test_options_that_do_not_fit_are_refused(joined, argv):
  with pytest.raises(UserError, match=r"expected HOST:PORT, N, and a number from 0 to N - 1, all three"):
    multihost.connect(parsed(*argv))
  assert not joined


def test_where_nothing_started_them_they_are_not_found(capsys, monkeypatch, tmp_path):
  for variable in (
    name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "TPU_", "JAX_COORDINATOR"))
  ):
    monkeypatch.delenv(variable)
  assert (
    main(
      [
        "train",
        "--config",
        str(ROOT / "configs" / "digits.py"),
        "--workdir",
        str(tmp_path / "w"),
        "--distributed",
      ]
    )
    == 2
  )
  (line,) = capsys.readouterr().err.splitlines()
  assert (
    "were not found: nothing here says how many there are, and where; give --coordinator HOST:PORT" in line
  )
  assert not (tmp_path / "w").exists()


ALONE = """
import sys
from jldm.cli import main
from jldm.distributed import heartbeat, multihost
multihost.CONNECT_S, heartbeat.REPORT_S = 3, 1
sys.exit(main(sys.argv[1:]))
"""


def test_one_process_decides_by_itself():
  assert multihost.broadcast(7) == 7 and multihost.broadcast(True) is True
  assert (
    multihost.any_process(True)
    and not multihost.any_process(False)
    and multihost.all_processes(True)
    and not multihost.all_processes(False)
  )
  multihost.barrier("end")
  assert not multihost.is_lost_connection(ValueError("Gloo all-reduce failed: Connection reset by peer")), (
    "there is nobody to lose"
  )


@pytest.mark.parametrize(
  "error, expected",
  [
    (ValueError("UNKNOWN: Gloo all-reduce failed: [pair.cc:538] Read error: Connection reset by peer"), True),
    (RuntimeError("UNAVAILABLE: Failed to send RPC to coordination service"), True),
    (RuntimeError("NCCL operation failed: unhandled system error"), True),
    (KeyError("gl"), False),
    (UserError("--coordinator was not found by gloo"), False),
  ],
)
def test_what_says_that_another_has_ended(monkeypatch, error, expected):
  monkeypatch.setattr(multihost, "is_multiprocess", lambda: True)
  assert multihost.is_lost_connection(error) == expected


def test_start_any_is_read_later():
  assert bool(multihost.start_any(True)) and not bool(multihost.start_any(False))


# ---- arrays of a mesh

LAYOUTS = (
  sharding.Layout(8),
  sharding.Layout(8, fsdp=4),
  sharding.Layout(8, tensor=2),
  sharding.Layout(8, fsdp=2, tensor=2),
)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_share_is_the_rows_that_are_held_here(layout):
  mesh, x = sharding.mesh_for(16, layout), np.arange(48).reshape(16, 3)
  rows = sharding.local_rows(mesh, 16)
  np.testing.assert_array_equal(rows, np.arange(16))
  placed = sharding.place_local_rows(mesh, 16, {"x": x[rows]})["x"]
  assert placed.sharding == sharding.batch_sharding(mesh) == sharding.shard_batch(mesh, x).sharding
  np.testing.assert_array_equal(placed, x)


@pytest.mark.parametrize(
  "rows", [np.arange(8, 16), np.array([0, 1, 4, 5, 8, 9, 12, 13])], ids=["half", "turns"]
)
def test_a_share_need_not_be_one_piece(monkeypatch, rows):
  """As of a process that holds every other part of a batch."""
  mesh, x = sharding.mesh_for(16, 8), np.arange(48).reshape(16, 3)
  asked = {}
  monkeypatch.setattr(sharding, "local_rows", lambda mesh, size: rows)
  monkeypatch.setattr(
    jax, "make_array_from_callback", lambda shape, at, part: asked.update(shape=shape, part=part)
  )
  sharding.place_local_rows(mesh, 16, x[rows])
  assert asked["shape"] == (16, 3)
  for start in rows[::2]:
    np.testing.assert_array_equal(asked["part"]((slice(start, start + 2), slice(None))), x[start : start + 2])


def test_what_is_fetched_is_whole():
  mesh = sharding.mesh_for(16, sharding.Layout(8, fsdp=4))
  tree = {"a": np.arange(2**13, dtype=np.float32).reshape(64, 128), "b": np.float32(3), "c": np.arange(3)}
  for placed in (sharding.shard(mesh, tree), sharding.replicate(mesh, tree), tree):
    actual = sharding.fetch(placed)
    assert all(isinstance(leaf, (np.ndarray, np.generic)) for leaf in jax.tree.leaves(actual))
    jax.tree.map(np.testing.assert_array_equal, actual, tree)


def test_keys_are_placed():
  placed = sharding.replicate(sharding.mesh_for(8, 8), jax.random.key(3))
  assert placed.sharding.is_fully_replicated
  np.testing.assert_array_equal(jax.random.key_data(placed), jax.random.key_data(jax.random.key(3)))


def test_devices_of_one_process_are_its_own():
  mesh = sharding.mesh_for(8, sharding.Layout(8, fsdp=2, tensor=2))
  own = sharding.local_mesh(mesh)
  assert own.size == 8 and own.shape["fsdp"] == own.shape["tensor"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("process", ["0", "1"])
def test_others_that_do_not_come_are_waited_for_and_missed(process, tmp_path):
  """Only the limits are shorter than in reality."""
  command = [
    sys.executable,
    "-c",
    ALONE,
    "train",
    "--config",
    str(ROOT / "configs" / "digits.py"),
    "--workdir",
    str(tmp_path / "w"),
    "--coordinator",
    f"127.0.0.1:{free_port()}",
    "--processes",
    "2",
    "--process",
    process,
  ]
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(ROOT)}
  )
  *waiting, last = done.stderr.splitlines()
  missing = f"process {1 - int(process)} "
  assert done.returncode == 2 and "did not connect within 3 s at --coordinator 127.0.0.1:" in last
  assert waiting and all(line.startswith(f"waiting for {missing}") for line in waiting), waiting
  assert f"missing: {missing}" in last and not (tmp_path / "w").exists()
