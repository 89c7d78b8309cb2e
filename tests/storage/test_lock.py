"""One trainer a workdir: who is refused, who takes over, and what is left behind."""

import fcntl
import json
import os
import socket
import subprocess
import sys

import pytest

from jldm.core.errors import UserError
from jldm.core.pids import start_of
from jldm.storage import lock
from tests.configs import ROOT

HOLDER = """
import pathlib, sys
from jldm.storage import lock
with lock.held(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  sys.stdin.read()
"""

TURNS = """
import os, pathlib, sys, time
from jldm.core.errors import UserError
from jldm.storage import lock
inside, turns, end = sys.argv[2], 0, time.monotonic() + 60
while turns < 25 and time.monotonic() < end:
  try:
    with lock.held(pathlib.Path(sys.argv[1])):
      os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
      time.sleep(0.002)
      os.unlink(inside)
      turns += 1
  except UserError:
    pass
print(turns)
"""


@pytest.fixture
def another(tmp_path):
  """Another process that holds the lock of tmp_path/w."""
  command = [sys.executable, "-c", HOLDER, str(tmp_path / "w")]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  with subprocess.Popen(
    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
  ) as process:
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()


def refused(workdir) -> str:
  with pytest.raises(UserError) as error, lock.held(workdir):
    raise AssertionError("it must not be held")
  assert "\n" not in str(error.value)
  return str(error.value)


def written(workdir, **changed):
  """A lock that this process might have left behind."""
  workdir.mkdir()
  said = {
    "pid": os.getpid(),
    "host": socket.gethostname(),
    "started": start_of(os.getpid()),
    "since": "2026-01-01T00:00:00",
  }
  (workdir / "lock").write_text(json.dumps(said | changed))
  return workdir


def test_held_and_let_go(tmp_path):
  with lock.held(tmp_path / "a" / "w"):
    assert json.loads((tmp_path / "a" / "w" / "lock").read_text())["pid"] == os.getpid()
    assert f"pid {os.getpid()} on {socket.gethostname()!r}" in refused(tmp_path / "a" / "w")
  assert not list((tmp_path / "a" / "w").iterdir())


def test_a_second_one_is_refused_until_the_first_ends(tmp_path, another):
  record = refused(tmp_path / "w")
  assert f"pid {another.pid} on {socket.gethostname()!r}" in record and "choose another --workdir" in record
  another.stdin.close()
  assert another.wait(30) == 0
  with lock.held(tmp_path / "w"):
    pass


@pytest.mark.parametrize("error", lock.UNKNOWN_FLOCK)
def test_where_flock_is_not_known_the_file_tells(tmp_path, another, monkeypatch, error):
  def unknown(file, how):
    raise OSError(error, "No locks available")

  monkeypatch.setattr(fcntl, "flock", unknown)
  assert f"pid {another.pid} on" in refused(tmp_path / "w")
  with lock.held(tmp_path / "v"):
    assert json.loads((tmp_path / "v" / "lock").read_text())["pid"] == os.getpid()
  assert not list((tmp_path / "v").iterdir())


def test_a_killed_holder_is_taken_over_from(tmp_path, another, capsys):
  another.kill()
  another.wait(30)
  with lock.held(tmp_path / "w"):
    assert f"is of pid {another.pid}, which has ended; it is taken over\n" in capsys.readouterr().err


def test_a_pid_in_use_again_is_not_its_holder(tmp_path, capsys):
  """The parent of this process lives: refused for as the holder, not as a later process of that pid."""
  workdir = written(tmp_path / "w", pid=os.getppid(), started=start_of(os.getppid()))
  assert f"pid {os.getppid()} on" in refused(workdir)
  (workdir / "lock").unlink()
  workdir.rmdir()
  boot, tick = start_of(os.getppid()).split()
  written(workdir, pid=os.getppid(), started=f"{boot} {int(tick) - 1}")
  with lock.held(workdir):
    assert f"pid {os.getppid()}, which has ended" in capsys.readouterr().err


def test_another_host_is_refused_with_what_to_do(tmp_path):
  workdir = written(tmp_path / "w", host="elsewhere")
  record = refused(workdir)
  assert "on 'elsewhere'" in record and f"remove {workdir / 'lock'}" in record
  (workdir / "lock").unlink()
  with lock.held(workdir):
    pass


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"pid": 1}', "[" * 4000, "\x00\xff"])
def test_a_lock_that_says_nothing_is_taken(tmp_path, text):
  (tmp_path / "lock").write_bytes(text.encode("latin-1"))
  with lock.held(tmp_path):
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_lock_removed_by_hand_and_taken_by_another_is_left_to_it(tmp_path):
  with lock.held(tmp_path):
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").write_text("another's")
  assert (tmp_path / "lock").read_text() == "another's"


def test_a_lock_that_can_be_no_file_is_one_line(tmp_path):
  (tmp_path / "folder" / "lock").mkdir(parents=True)
  (tmp_path / "pipe").mkdir()
  os.mkfifo(tmp_path / "pipe" / "lock")
  (tmp_path / "device").mkdir()
  (tmp_path / "device" / "lock").symlink_to("/dev/full")
  for kind in ("folder", "pipe", "device"):
    record = refused(tmp_path / kind)
    assert repr(str(tmp_path / kind / "lock")) in record and "remove what is there" in record
  assert (tmp_path / "folder" / "lock").is_dir()


def test_of_many_at_once_one_holds(tmp_path):
  """Four processes that take and leave the lock 25 times each: never two within."""
  command = [sys.executable, "-c", TURNS, str(tmp_path / "w"), str(tmp_path / "inside")]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  racing = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
  record = [process.communicate(timeout=100)[0] for process in racing]
  assert all(process.returncode == 0 for process in racing), record
  assert sum(map(int, record)) >= 25 and not list((tmp_path / "w").iterdir())
