import os
import subprocess
import sys
import time

from jldm.core.pids import age_s, exists, start_of


def test_a_process_has_one_start_until_it_ends():
  child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
  start = start_of(child.pid)
  assert start and start == start_of(child.pid) != start_of(os.getpid())
  child.stdin.close()
  os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
  assert start_of(child.pid) is None and exists(child.pid), "ended, and not waited for"
  child.wait(30)
  assert start_of(child.pid) is None and not exists(child.pid)


def test_age_counts_from_the_start_of_the_process():
  before = time.monotonic()
  code = "import time; time.sleep(0.3); from jldm.core.pids import age_s; print(age_s())"
  age = float(
    subprocess.run(
      [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout
  )
  assert 0.3 <= age <= time.monotonic() - before + 0.02
  assert age_s() > age


def test_without_proc(monkeypatch):
  import jldm.core.pids as pids

  class Absent:
    def __init__(self, path):
      pass

    def read_text(self):
      raise FileNotFoundError

  monkeypatch.setattr(pids, "Path", Absent)
  assert (pids.start_of(os.getpid()), pids.start_of(2**22 + 1)) == ("", None)
  assert 0 < pids.age_s() < 1e6
