"""SIGTERM, which a scheduler sends some seconds before it takes the machine away, and SIGINT, Ctrl-C.

A handler in Python runs between two bytecodes of the main thread, which a single compilation may block
for a minute; and an exception that it raises within a callback of JAX is lost.  So a thread reads
signals from a pipe, at once.  The first signal sets a notice, which
the loop reads between steps; after GRACE_S without a step it ends the process itself.  The second
signal ends the process at once.  Committed checkpoints stay.

If one of several processes gets the signal, all stop after the same step: each sends its notice with
every step, and reads what all sent IN_FLIGHT steps later, when it has arrived and nobody waits.
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

from jldm.core.errors import RESUME_HINT, Interrupted, Preempted
from jldm.distributed import multihost
from jldm.train.loop import IN_FLIGHT, End, Hook

GRACE_S = 25.0
CAUSES = {signal.SIGTERM: ("stopped by SIGTERM", Preempted), signal.SIGINT: ("interrupted", Interrupted)}


class Notice:
  """Whether a signal came, to this process or to another of its run."""

  def __init__(self) -> None:
    self.requested = False
    self.number = signal.SIGTERM  # of the signal; that of another process counts as SIGTERM
    self.sent: collections.deque = collections.deque()

  def request(self, number: int) -> None:
    self.number, self.requested = signal.Signals(number), True

  def error(self, place: str = "") -> Preempted:
    """What to raise for the signal."""
    words, kind = CAUSES[self.number]
    return kind(f"{words}{place}; {RESUME_HINT}")

  def raise_if_requested(self) -> None:
    """Raises Preempted if a signal came to any process; all processes must call this."""
    if multihost.any_process(self.requested):
      raise self.error()

  def checked(self, items: Iterable, alone: bool = False) -> Iterator:
    """The items, with `raise_if_requested` before each: for long work between two steps.

    `alone`: other processes have other items.  Then only a process with a signal calls
    `raise_if_requested`, at once; the others call it after their items.
    """
    for item in items:
      if self.requested or not alone:
        self.raise_if_requested()
      yield item

  def stop_agreed(self) -> bool:
    """Whether all processes stop after this step; all must call this after each step."""
    if not multihost.is_multiprocess():
      return self.requested
    self.sent.append(multihost.start_any(self.requested))
    return len(self.sent) > IN_FLIGHT and bool(self.sent.popleft())

  def hook(self, stage: str, end: End, keep: Callable[[int, Any, dict], None]) -> Hook:
    """Ends a stage after the step with the notice, once keep(step, state, metrics) has started to save it.

    The last step is left to the caller, who saves more.
    """

    def call(n, state, metrics):
      if self.stop_agreed() and n < end.step:
        keep(n, state, metrics)
        raise self.error(f" at {stage} step {n}")

    return Hook(1, call)

  def guard(self, hook: Hook, stage: str, end: End, keep: Callable[[int, Any, dict], None]) -> Hook:
    """A long hook that `raise_if_requested` may interrupt: the state of its step is saved first."""

    def call(n, state, metrics):
      try:
        hook.call(n, state, metrics)
      except Preempted as error:
        if n == end.step:
          raise
        keep(n, state, metrics)
        raise self.error(f" at {stage} step {n}") from error

    return hook._replace(call=call)


@contextlib.contextmanager
def watch_signals(grace_s: float = GRACE_S) -> Iterator[Notice]:
  """A notice of SIGTERM and SIGINT while the block runs; outside the main thread none ever comes."""
  notice = Notice()
  if threading.current_thread() is not threading.main_thread():
    yield notice
    return
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  heeded = [number for number in CAUSES if signal.getsignal(number) != signal.SIG_IGN]
  handlers = {number: signal.signal(number, lambda number, frame: None) for number in heeded}
  wakeup_fd = signal.set_wakeup_fd(writer)
  watcher = threading.Thread(
    target=_watch_pipe, args=(notice, reader, grace_s), name="preemption", daemon=True
  )
  watcher.start()
  try:
    yield notice
  finally:
    signal.set_wakeup_fd(wakeup_fd)
    for number, handler in handlers.items():
      signal.signal(number, handler)
    os.close(writer)
    watcher.join()
    os.close(reader)


def _watch_pipe(notice: Notice, reader: int, grace_s: float) -> None:
  """Reads signal numbers, one per byte, until the pipe is closed."""
  end = None
  while True:
    left = None if end is None else max(0, end - time.monotonic())
    if not select.select([reader], [], [], left)[0]:
      _exit(notice, f"; no step ended within {grace_s:g} s")
    numbers = os.read(reader, 64)
    if not numbers:
      return
    came = [number for number in numbers if number in CAUSES]
    if len(came) > 1 or (came and notice.requested):
      notice.request(came[-1])
      _exit(notice, " by a second signal")
    if came:
      notice.request(came[0])
      end = time.monotonic() + grace_s
      if came[0] == signal.SIGINT:
        print(
          "\ninterrupted; this step is being finished and saved, Ctrl-C again ends at once", file=sys.stderr
        )


def _exit(notice: Notice, how: str) -> None:
  error = notice.error(how)
  print(error, file=sys.stderr, flush=True)
  os._exit(error.EXIT_CODE)
