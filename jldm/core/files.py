"""Atomic writes: files and folders appear complete or not at all."""

from collections.abc import Iterable, Iterator
import contextlib
import errno
import os
from pathlib import Path
import shutil
from typing import BinaryIO

from filelock import lock_descriptor

from jldm.core.pids import exists

# Of a file system that has no locks, such as NFS without its daemon.
UNKNOWN_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


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


def remove_partials(paths: Iterable[Path]) -> None:
  """Removes what ended processes left of `replace_file` for these paths, all in one folder."""
  paths = set(paths)
  folder = next(iter(paths)).parent
  for left in folder.glob(".*.*"):
    name, _, pid = left.name[1:].rpartition(".")
    if folder / name in paths and pid.isdecimal() and not exists(int(pid)):
      left.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
  """A temporary sibling that becomes `folder` when the block ends, or vanishes if it raises.

  Raises: OSError if `folder` exists when the block ends or cannot be made, or another process is making it.
  What a killed run left behind is removed by the next one.
  """
  with locked_folder(folder.with_name(f".{folder.name}.partial")) as temporary:
    yield temporary
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
      raise FileExistsError(errno.EEXIST, "it exists, perhaps made by another process just now", str(folder))
    os.rename(temporary, folder)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
  """An empty folder that this process alone uses until the block ends, when it is removed.

  The kernel's lock on it ends with its holder, however that ends.  A file system without such locks
  grants it to all.

  Raises: BlockingIOError if another process has it; OSError if it cannot be made.
  """
  number = open_locked(folder)
  try:
    for left in folder.iterdir():  # by a killed run
      shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    yield folder
  finally:
    if is_at(number, folder):  # else it was renamed
      shutil.rmtree(folder, ignore_errors=True)
    os.close(number)


def open_locked(folder: Path) -> int:
  """Makes a folder and returns its descriptor, locked; BlockingIOError if another process has it."""
  while True:
    folder.mkdir(parents=True, exist_ok=True)
    try:
      number = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
      continue  # its holder renamed it between our making and opening it
    try:
      granted = lock_descriptor(number, blocking=False)
    except OSError as error:
      granted = error.errno in UNKNOWN_FLOCK
      if not granted:
        os.close(number)
        raise
    if granted and is_at(number, folder):
      return number
    os.close(number)
    if not granted:
      raise BlockingIOError(errno.EAGAIN, "another process is writing it", str(folder))


def is_at(number: int, folder: Path) -> bool:
  """Whether an open folder is still the one at a path."""
  try:
    return os.path.samestat(os.fstat(number), folder.stat())
  except FileNotFoundError:
    return False
