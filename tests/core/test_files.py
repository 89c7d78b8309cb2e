"""A file and a folder appear whole or not at all."""

import os
from pathlib import Path
import subprocess
import sys

import pytest

from jldm.core import files
from jldm.core.files import replace_file, replace_folder


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
  path = tmp_path / "deep" / "er" / "a"
  with replace_file(path) as file:
    file.write(b"new")
    assert not path.exists()
  assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("partial", [None, "a.partial"])
def test_an_error_leaves_what_was_there(tmp_path, error, partial):
  path = tmp_path / "a"
  path.write_bytes(b"old")
  with pytest.raises(error), replace_file(path, partial=partial) as file:
    file.write(b"half")
    raise error
  assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_partial_file_has_the_given_name_and_what_a_kill_left_of_it_is_overwritten(tmp_path):
  left = tmp_path / "a.partial"
  left.write_bytes(b"much longer than what comes")
  with replace_file(tmp_path / "a", partial="a.partial") as file:
    assert file.name == str(left)
    file.write(b"new")
  assert (tmp_path / "a").read_bytes() == b"new" and not left.exists()


def test_a_missing_folder_is_an_error_if_it_is_not_to_be_made(tmp_path):
  with pytest.raises(FileNotFoundError), replace_file(tmp_path / "none" / "a", make_folder=False):
    pass
  assert not list(tmp_path.iterdir())


def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "null").symlink_to("/dev/null")
  for name in ("pipe", "null"):
    with pytest.raises(OSError, match="a device or a pipe"), replace_file(tmp_path / name) as file:
      file.write(b"new")
  assert (tmp_path / "pipe").is_fifo() and (tmp_path / "null").is_char_device()
  assert len(list(tmp_path.iterdir())) == 2


def test_contents_are_on_the_disk_before_the_file_takes_its_place(tmp_path, monkeypatch):
  events = []
  fsync, replace = os.fsync, os.replace
  monkeypatch.setattr(
    files.os, "fsync", lambda number: (events.append(("fsync", os.fstat(number).st_size)), fsync(number))
  )
  monkeypatch.setattr(files.os, "replace", lambda *paths: (events.append(("replace",)), replace(*paths)))
  with replace_file(tmp_path / "a", fsync=True) as file:
    file.write(b"new")
  assert events == [("fsync", 3), ("replace",)]


def test_a_folder_takes_its_place_or_vanishes(tmp_path):
  with replace_folder(tmp_path / "a") as folder:
    (folder / "x").write_text("whole")
    assert not (tmp_path / "a").exists()
  assert (tmp_path / "a" / "x").read_text() == "whole"
  with pytest.raises(RuntimeError), replace_folder(tmp_path / "b") as folder:
    raise RuntimeError
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


HOLDER = """
import sys, pathlib
from jldm.core.files import replace_folder
with replace_folder(pathlib.Path(sys.argv[1])) as folder:
  (folder / "x").write_text("first")
  print("held", flush=True)
  sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path):
  """A process that is making the folder `a` until it is asked to end."""
  command = [sys.executable, "-c", HOLDER, str(tmp_path / "a")]
  environment = os.environ | {"PYTHONPATH": str(Path(files.__file__).parents[2])}
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
  with subprocess.Popen(command, env=environment, text=True, **pipes) as child:
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()


def test_of_two_processes_that_make_a_folder_one_is_refused_and_takes_nothing_from_the_other(
  holder, tmp_path
):
  with pytest.raises(BlockingIOError, match="another process is writing it"), replace_folder(tmp_path / "a"):
    pass
  holder.communicate("end\n")
  assert (tmp_path / "a" / "x").read_text() == "first"
  with (
    pytest.raises(FileExistsError, match="perhaps made by another process"),
    replace_folder(tmp_path / "a"),
  ):
    pass
  assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_was_making_is_made_anew(holder, tmp_path):
  holder.kill()
  holder.wait()
  assert (tmp_path / ".a.partial" / "x").exists()
  with replace_folder(tmp_path / "a") as folder:
    assert not any(folder.iterdir())
    (folder / "y").write_text("second")
  assert [path.name for path in (tmp_path / "a").iterdir()] == ["y"]
  assert [path.name for path in tmp_path.iterdir()] == ["a"]
