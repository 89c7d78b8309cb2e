"""Atomic writes: files and folders appear complete or not at all."""

from collections.abc import Iterator
import contextlib
import errno
import os
from pathlib import Path
import shutil
from typing import BinaryIO


@contextlib.contextmanager
def replace_file(
  path: Path, *, partial: str | None = None, make_folder: bool = True, fsync: bool = False
) -> Iterator[BinaryIO]:
  """A new file that takes the place of `path` when the block ends; if it raises, what was there stays.

  partial: name of the file until then, in the same folder.  By default it has the process's number,
    so that a file may have several writers; of a fixed name, what a killed run left behind is
    overwritten by the next one.
  fsync: whether the contents are on the disk before the file takes its place.

  Raises: OSError if the folder, or the file in it, cannot be made, or a device or a pipe is there.
  """
  if path.exists() and not path.is_file() and not path.is_dir():  # a folder is refused when it is replaced
    raise OSError(errno.EINVAL, "a device or a pipe, which no file replaces", str(path))
  if make_folder:
    path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(partial or f".{path.name}.{os.getpid()}")
  try:
    with temporary.open("wb") as file:
      yield file
      if fsync:
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
  """A temporary sibling that becomes `folder` when the block ends, or vanishes if it raises.

  Raises: OSError if `folder` exists or cannot be made.
  What a killed run left behind is removed by the next one, so a folder may have one writer at a time.
  """
  temporary = folder.with_name(f".{folder.name}.partial")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  try:
    yield temporary
    os.rename(temporary, folder)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
