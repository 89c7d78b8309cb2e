"""SIGTERM, as a scheduler sends it some seconds before it takes the machine away.

A handler in Python runs between two bytecodes of the main thread, which one compilation may hold
for a minute.  So a thread reads the signals from a pipe, at once: the first is a notice that the
loop looks at between steps, and that ends the process by itself when GRACE_S have passed; the
second ends it there and then.  What was committed stays committed.

Of several processes one notice is enough, and all stop after the same step: each sends with every
step what it knows, and reads what all knew IN_FLIGHT steps later, when that is there and nobody
waits for it.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import contextlib
import os
import select
import signal
import sys
import threading
import time
from typing import Any

from jldm.core.errors import RESUME_HINT, Preempted
from jldm.distributed import multihost
from jldm.train.loop import IN_FLIGHT, Hook

GRACE_S = 25.0


class Notice:
  """Whether this process, or another of its run, was asked to end."""

  def __init__(self) -> None:
    self.asked = False
    self.sent: collections.deque = collections.deque()

  def check(self) -> None:
    """Raises Preempted if one was; all processes come here."""
    if multihost.any_process(self.asked):
      raise Preempted(f"stopped by SIGTERM; {RESUME_HINT}")

  def between(self, items: Iterable, alone: bool = False) -> Iterator:
    """The items, with a look before each: for what takes long between two steps.

    `alone`: other processes have other items, and come to a `check` behind theirs, which one that
    was asked comes to at once.
    """
    for item in items:
      if self.asked or not alone:
        self.check()
      yield item

  def came(self) -> bool:
    """Whether to stop after this step; all processes come here after each."""
    if not multihost.is_multiprocess():
      return self.asked
    self.sent.append(multihost.start_any(self.asked))
    return len(self.sent) > IN_FLIGHT and bool(self.sent.popleft())

  def hook(self, stage: str, stop: int, keep: Callable[[int, Any, dict], None]) -> Hook:
    """Ends a stage after the step in which the notice came, once keep(step, state, metrics) has begun
    to save it; the last step is left to the caller, who saves it with more.
    """

    def call(n, state, metrics):
      if self.came() and n < stop:
        keep(n, state, metrics)
        raise Preempted(f"stopped by SIGTERM at {stage} step {n}; {RESUME_HINT}")

    return Hook(1, call)

  def guard(self, hook: Hook, stage: str, stop: int, keep: Callable[[int, Any, dict], None]) -> Hook:
    """A hook that takes long, and may be left by `check`: what its step made is kept."""

    def call(n, state, metrics):
      try:
        hook.call(n, state, metrics)
      except Preempted as error:
        if n == stop:
          raise
        keep(n, state, metrics)
        raise Preempted(f"stopped by SIGTERM at {stage} step {n}; {RESUME_HINT}") from error

    return hook._replace(call=call)


@contextlib.contextmanager
def watched(grace_s: float = GRACE_S) -> Iterator[Notice]:
  """A notice of SIGTERM while the block runs; one that never comes where signals are another thread's business."""
  notice = Notice()
  if threading.current_thread() is not threading.main_thread():
    yield notice
    return
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  before = signal.signal(signal.SIGTERM, lambda number, frame: None), signal.set_wakeup_fd(writer)
  watcher = threading.Thread(target=_watch, args=(notice, reader, grace_s), name="preemption", daemon=True)
  watcher.start()
  try:
    yield notice
  finally:
    signal.set_wakeup_fd(before[1])
    signal.signal(signal.SIGTERM, before[0])
    os.close(writer)
    watcher.join()
    os.close(reader)


def _watch(notice: Notice, reader: int, grace_s: float) -> None:
  """Until the pipe is closed: a byte is the number of a signal."""
  end = None
  while True:
    left = None if end is None else max(0, end - time.monotonic())
    if not select.select([reader], [], [], left)[0]:
      _leave(f"stopped by SIGTERM; no step ended within {grace_s:g} s; {RESUME_HINT}")
    if not (came := os.read(reader, 64)):
      return
    terms = came.count(signal.SIGTERM)
    if terms > 1 or (terms and notice.asked):
      _leave(f"stopped by a second SIGTERM; {RESUME_HINT}")
    if terms:
      notice.asked, end = True, time.monotonic() + grace_s


def _leave(told: str) -> None:
  print(told, file=sys.stderr, flush=True)
  os._exit(Preempted.EXIT_CODE)
