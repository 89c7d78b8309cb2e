"""The processes of this machine, read from /proc if there is one."""

import os
from pathlib import Path
import time

_IMPORTED = time.monotonic()
_STATE, _START = 0, 19  # fields 3 and 22 of /proc/<pid>/stat, counted after the name


def start_of(pid: int) -> str | None:
  """The boot id and the clock tick at which a process started, which differ for a later one of the same pid.

  None if there is no such process, or it has ended; "" if there is one but no /proc.
  """
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  except OSError:
    return "" if exists(pid) else None
  fields = _stat(pid)
  return None if fields is None or fields[_STATE] in "ZX" else f"{boot} {fields[_START]}"


def exists(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except PermissionError:
    return True
  except (OSError, OverflowError):
    return False
  return True


def age_s() -> float:
  """Seconds since this process started, to a clock tick; without /proc, since this module was imported."""
  fields = _stat(os.getpid())
  if fields is None:
    return time.monotonic() - _IMPORTED
  return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_START]) / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str] | None:
  try:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  except OSError:
    return None
