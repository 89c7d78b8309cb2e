"""One trainer per workdir: `W/lock`, {"pid", "host", "started", "since"}.

Two things keep a second trainer out.  The first is the kernel's lock on the file (flock, by `filelock`),
which ends with its holder, however that ends.  The second is the content of the file: not every file system
shows one machine the locks of another (NFS does not if it is mounted with nolock or local_lock), and some
have no flock at all.  filelock.FileLock opens the file by itself, and some of its versions empty it, so
lock_descriptor locks the file that is open here.  Thus

  a holder that lives, on this host or by flock                   is refused, with its pid and host;
  one of this host that has ended, its pid perhaps in use again   is taken over from, with a line;
  one of another host, whose end cannot be seen from here         is refused, with what to do.
"""

from collections.abc import Iterator
import contextlib
import datetime
import errno
import json
import os
from pathlib import Path
import socket
import stat
import sys
from typing import IO

from filelock import lock_descriptor

from jldm.core.errors import UserError
from jldm.core.pids import start_of
from jldm.distributed import multihost

NAME = "lock"
UNKNOWN_FLOCK = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
  """Makes the folder and holds its lock.

  Raises:
    UserError: another process trains there, or may; or the lock cannot be opened as a file.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / NAME
  with _opened(path) as file:
    _refuse_others(path, _holder(file))
    mine = {
      "pid": os.getpid(),
      "host": socket.gethostname(),
      "started": start_of(os.getpid()),
      "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    file.seek(0)
    file.truncate()
    file.write(json.dumps(mine) + "\n")
    file.flush()

    def release() -> None:
      if _is_at(file, path):  # else someone removed it by hand, and what is there now is another's
        path.unlink()

    try:
      with multihost.released_at_exit(release):
        yield
    finally:
      release()


def _opened(path: Path) -> IO[str]:
  """The lock's file with flock on it; raises UserError if another process has it, or it is no file."""
  while True:
    file = _open(path)
    try:
      granted = lock_descriptor(file.fileno(), blocking=False)
    except OSError as error:
      granted = error.errno in UNKNOWN_FLOCK
      if not granted:
        file.close()
        raise
    if not granted:
      with file:
        raise UserError(_refusal(path, _holder(file)))
    if _is_at(file, path):
      return file
    file.close()  # its holder left, and removed it, between our opening and locking it


def _open(path: Path) -> IO[str]:
  """O_NONBLOCK: a pipe that nobody reads is refused, not waited for."""
  try:
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644), "r+", errors="replace")
  except (OSError, ValueError) as error:  # ValueError: fdopen's, of what cannot be both read and written
    raise UserError(f"cannot open the lock {str(path)!r}, a file: {error}; remove what is there") from error
  if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
    file.close()
    raise UserError(f"the lock {str(path)!r} is a pipe or a device, and must be a file; remove what is there")
  return file


def _is_at(file: IO[str], path: Path) -> bool:
  try:
    return os.path.samestat(os.fstat(file.fileno()), path.stat())
  except FileNotFoundError:
    return False


def _holder(file: IO[str]) -> dict:
  """The holder that a lock names; {} if it is damaged, or its holder was killed before writing it."""
  file.seek(0)
  try:
    holder = json.loads(file.read(4096))
  except (ValueError, RecursionError):
    return {}
  kinds = {"pid": int, "host": str, "started": str, "since": str}
  whole = isinstance(holder, dict) and all(type(holder.get(name)) is kind for name, kind in kinds.items())
  return holder if whole and holder["pid"] > 0 and holder["since"].isprintable() else {}


def _refusal(path: Path, holder: dict) -> str:
  who = (
    "another process" if not holder else f"pid {holder['pid']} on {holder['host']!r} since {holder['since']}"
  )
  return (
    f"workdir {str(path.parent)!r} is in training by {who}; wait for it, stop it, or choose another --workdir"
  )


def _refuse_others(path: Path, holder: dict) -> None:
  """Raises a UserError for a holder that lives, or may, although flock was granted; else takes over."""
  if not holder:
    return
  if holder["host"] != socket.gethostname():
    raise UserError(
      f"{_refusal(path, holder)}; if it has ended (which {socket.gethostname()!r} cannot see), remove {path}"
    )
  if holder["pid"] != os.getpid() and start_of(holder["pid"]) == holder["started"]:
    raise UserError(_refusal(path, holder))
  print(f"{path} is of pid {holder['pid']}, which has ended; it is taken over", file=sys.stderr, flush=True)
