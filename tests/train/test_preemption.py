"""A notice of SIGTERM: seen between steps and items, kept what there is, and an end that does not
depend on the main thread.
"""

import functools
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jldm.core.errors import RESUME_HINT, Interrupted, Preempted
from jldm.data.source import Arrays
from jldm.distributed import multihost
from jldm.storage import array_cache
from jldm.train.loop import End, Hook
from jldm.train.preemption import Notice, watch_signals
from tests.configs import ROOT


def asked_within(notice, seconds=5.0) -> bool:
  end = time.monotonic() + seconds
  while not notice.requested and time.monotonic() < end:
    time.sleep(0.001)
  return notice.requested


def test_a_signal_is_noticed_and_the_handlers_before_come_back():
  before = signal.getsignal(signal.SIGTERM)
  with watch_signals() as notice:
    assert not notice.requested
    notice.raise_if_requested()
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked_within(notice)
    with pytest.raises(Preempted, match="goes on from the last checkpoint"):
      notice.raise_if_requested()
  assert signal.getsignal(signal.SIGTERM) is before and signal.set_wakeup_fd(-1) == -1
  assert "preemption" not in {thread.name for thread in threading.enumerate()}


def test_ctrl_c_is_a_notice_with_an_exit_code_of_its_own(request):
  request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
  # which is ignored in what a script runs in the background
  signal.signal(signal.SIGINT, signal.default_int_handler)
  with watch_signals() as notice:
    os.kill(os.getpid(), signal.SIGINT)
    assert asked_within(notice, 5)
    with pytest.raises(Interrupted, match="interrupted; the same command") as error:
      notice.raise_if_requested()
    assert error.value.EXIT_CODE == 130
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_ignored_signal_stays_ignored(request):
  request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  with watch_signals() as notice:
    os.kill(os.getpid(), signal.SIGINT)
    assert not asked_within(notice, 0.05)
  assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_another_thread_it_never_comes():
  actual = []

  def run():
    with watch_signals() as notice:
      actual.append(notice.requested)

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert actual == [False]


def test_items_end_with_the_notice():
  notice, seen = Notice(), []
  with pytest.raises(Preempted):
    for item in notice.checked(range(5)):
      seen.append(item)
      notice.requested = item == 2
  assert seen == [0, 1, 2]


@pytest.mark.parametrize(("at", "kept"), [(3, [3]), (6, [])])
def test_the_step_of_the_notice_is_kept_unless_it_is_the_last(at, kept):
  notice, calls = Notice(), []
  keep = lambda n, state, metrics: calls.append(n)
  hook = notice.hook("denoiser", End(6), keep)
  hook.call(at, None, {})
  assert not calls
  notice.requested = True
  if kept:
    with pytest.raises(Preempted, match="at denoiser step 3"):
      hook.call(at, None, {})
  else:
    hook.call(at, None, {})
  assert calls == kept


def test_what_takes_long_is_left_and_its_step_kept():
  notice, calls = Notice(), []

  def look(n, state, metrics):
    notice.requested = True
    notice.raise_if_requested()

  guarded = notice.guard(
    Hook(2, look, at_end=True), "denoiser", End(6), lambda n, state, metrics: calls.append(n)
  )
  assert (guarded.every_steps, guarded.at_end) == (2, True)
  with pytest.raises(Preempted, match="step 4"):
    guarded.call(4, None, {})
  with pytest.raises(Preempted, match="last checkpoint"):
    guarded.call(6, None, {})
  assert calls == [4], "the last step is the caller's, who saves more with it"


HELD = """
import ctypes, signal, sys
from jldm.train.preemption import watch_signals
signal.signal(signal.SIGINT, signal.default_int_handler)  # a script ignores it in the background
with watch_signals(grace_s=float(sys.argv[1])) as notice:
  print("ready", flush=True)
  ctypes.CDLL(None).sleep(30)  # like a compilation: no bytecode of the main thread runs
  ctypes.CDLL(None).sleep(30)
"""


@pytest.mark.parametrize(
  ("number", "code", "name"),
  [(signal.SIGTERM, 75, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted")],
)
@pytest.mark.parametrize(
  ("grace_s", "signals", "how"),
  [("0.5", 1, "; no step ended within 0.5 s"), ("20", 2, " by a second signal")],
)
def test_a_busy_main_thread_does_not_delay_the_end(grace_s, signals, how, number, code, name):
  command = [sys.executable, "-c", HELD, grace_s]
  pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes) as process:
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    for _ in range(signals):
      process.send_signal(number)
      time.sleep(0.1)
    last = process.communicate(timeout=20)[1].splitlines()[-1]
    assert last == f"{name}{how}; {RESUME_HINT}" and process.returncode == code
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1)], ids=str)
def test_processes_with_parts_of_their_own_meet_once_whichever_was_asked(asked, tmp_path, monkeypatch):
  """As they encode latents, two threads for two processes: a process too few at a meeting would break
  the barrier.
  """
  flags, barrier, ends = [False, False], threading.Barrier(2, timeout=20), [None, None]

  def any_of(flag):
    flags[int(threading.current_thread().name)] = flag
    barrier.wait()
    actual = any(flags)
    barrier.wait()
    return actual

  monkeypatch.setattr(multihost, "any_process", any_of)
  monkeypatch.setattr(array_cache, "PART", 2)
  source = Arrays({"x": np.arange(12)})

  def run(process):
    notice = Notice()

    def encode(part):
      for row in notice.checked(range(len(part)), alone=True):
        notice.requested = process in asked and part.start >= 4
        yield part[np.array([row])]

    try:
      array_cache.write_cache(tmp_path / "latents", source, encode, process, 2, notice.raise_if_requested)
    except Exception as error:
      ends[process] = error

  threads = [threading.Thread(target=run, args=(process,), name=str(process)) for process in range(2)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  assert [type(end) for end in ends] == [Preempted, Preempted]
  assert (tmp_path / "latents" / "0-0").is_dir() and not (tmp_path / "latents" / "index.json").exists()
