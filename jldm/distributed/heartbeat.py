"""How the processes of a run meet, and how each notices that another one is lost.

Process 0 listens at HOST:PORT, and every other process connects to it and says its number.  When all are
there, JAX may start.  From then on both ends of a connection write a line every BEAT_S.  A process is lost
if nothing is heard of it for SILENCE_S, or if its connection closes before it said that it ends.  Process 0
tells the others, and each prints one line and exits with code 75.

JAX has such a watch of its own, which ends a process by signal 6, with a C++ stack, at the moment that the
connection to its coordination service breaks.  So that service listens on 127.0.0.1 of process 0 only, and
the other processes reach it through HOST:PORT too: `relay` forwards bytes to JAX, but never the end of a
connection.

All of it runs in one daemon thread, an asyncio loop, which works while the main thread compiles or waits for
a device.  Silence is counted in beats of one's own, so that a process that was itself suspended, or had no
time to run, does not take that for the silence of another.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
from typing import Any

from jldm.core.errors import RESUME_HINT, UserError
from jldm.distributed.relay import RETRY_S, copy_both, free_port, relay

BEAT_S = 1
SILENCE_S = 10  # a process that is silent for so long is lost
REPORT_S = 10  # how often a process that waits for the first meeting says for whom
GRACE_S = 5  # how long a process may go on to tell a mistake of its own after another has failed
LEAVE_S = 10  # how long the exit of a process may take once all have finished
TOLD_S = 2  # how long process 0 stays for the others to read that one is lost
LONGEST_HELLO_S = 10


@dataclasses.dataclass
class Peer:
  """A process at the other end of a connection."""

  number: int
  host: str
  writer: asyncio.StreamWriter
  silent_beats: int = 0
  done: bool = False  # it has finished, and waits for all to
  failed: bool = False  # it said that it ends because of an error

  def send(self, message: dict[str, Any]) -> None:
    """Sends one line; nothing is a beat."""
    if not self.writer.is_closing():
      self.writer.write((json.dumps(message) if message else "").encode() + b"\n")


class Watch:
  """The connections of this process to the others of its run.

  `met` is set when all processes are there, `finished` when all have finished.  `jax_address` is where this
  process reaches JAX's coordination service.  `exit_lost` is called with a line that names the lost process.
  """

  def __init__(self, address: str, count: int, number: int, exit_lost: Callable[[str], None]) -> None:
    host, _, port = address.rpartition(":")
    self.address, self.host, self.port = address, host.strip("[]"), int(port)
    self.count, self.number, self.exit_lost = count, number, exit_lost
    self.peers: dict[int, Peer] = {}  # of process 0 all others, of another process 0 alone
    self.met, self.finished = threading.Event(), threading.Event()
    self.leaving = False
    self.done = False
    self.jax_address = ""
    self.waiting_for = self._missing() if number == 0 else f"process 0 at {address}"
    self._failure = ""
    self._tasks: list[asyncio.Task] = []
    self._loop = asyncio.new_event_loop()

  # ---- what the main thread calls

  def start(self) -> None:
    """Starts the thread.

    Raises:
      UserError: this is process 0 and the port cannot be listened at.
    """
    threading.Thread(target=self._loop.run_forever, name="heartbeat", daemon=True).start()
    try:
      self._call(self._open())
    except OSError as error:
      raise UserError(
        f"--coordinator {self.address}: process 0 cannot listen at port {self.port} ({describe(error)}); "
        "give all processes another HOST:PORT, a free port on the host of process 0"
      ) from error

  def meet(self, limit_s: float) -> None:
    """Returns when all processes are there, and says every REPORT_S who is missing.

    Raises:
      UserError: they did not come within `limit_s`.
    """
    end = time.monotonic() + limit_s
    while not self.met.wait(min(REPORT_S, max(0, end - time.monotonic()))):
      left = end - time.monotonic()
      if left <= 0:
        raise UserError(
          f"the other processes of this run did not connect within {limit_s:g} s at --coordinator "
          f"{self.address}; missing: {self.waiting_for}; start all of them with the same HOST:PORT: the host "
          "of process 0 and a free port on it"
        )
      print(f"waiting for {self.waiting_for}, for {left:.0f} s more", file=sys.stderr, flush=True)

  def fail(self, code: int) -> None:
    """Tells the others that this process ends because of an error."""
    name = f"process {self.number} of this run (on {socket.gethostname()})"
    text = f"{name} has ended with exit code {code}; its own output says why"
    with contextlib.suppress(TimeoutError, OSError):
      self._call(self._send_all({"failed": text}), TOLD_S)

  def finish(self, code: int, limit_s: float) -> bool:
    """Waits until all processes have finished, at most `limit_s`; whether they have.

    From then on none can be lost, and this one exits with `code` within LEAVE_S.
    """
    self._call(self._finish_own())
    if finished := self.finished.wait(limit_s):
      self._loop.call_soon_threadsafe(self._loop.call_later, LEAVE_S, os._exit, code)
    return finished

  def close(self) -> None:
    """Ends the connections; process 0 waits for the others to."""
    with contextlib.suppress(TimeoutError):
      self._call(self._close(), LEAVE_S)

  def explain(self, wait_s: float, hurry: bool = False) -> None:
    """Waits for the news that another process is lost, which ends this one.

    With `hurry` the news that another has failed does so at once.
    """
    if hurry:
      self._loop.call_soon_threadsafe(self._hurry)
    end = time.monotonic() + wait_s
    while self.leaving or time.monotonic() < end:
      time.sleep(0.05)

  def _call(self, work: Coroutine, limit_s: float | None = None) -> Any:
    return asyncio.run_coroutine_threadsafe(work, self._loop).result(limit_s)

  # ---- how the connections come about

  async def _open(self) -> None:
    if self.number == 0:
      self._server = await asyncio.start_server(self._welcome, None, self.port)
      self.jax_address = f"127.0.0.1:{free_port()}"
    else:
      self._server = await asyncio.start_server(self._carry_jax, "127.0.0.1", 0)
      self.jax_address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
      self._spawn(self._join())
    self._spawn(self._beat())
    self._check_met()

  async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Process 0 is connected to: by another process, or by the JAX of one."""
    try:
      hello = parse(await asyncio.wait_for(reader.readline(), LONGEST_HELLO_S))
    except (OSError, ValueError, TimeoutError):
      hello = {}
    number = hello.get("process")
    if hello.get("for") == "jax":
      await relay((reader, writer), self.jax_address)
      return
    peer = Peer(number, str(hello.get("host"))[:100], writer)
    if refusal := self._refusal(hello):
      peer.send({"waiting": refusal})
      writer.close()
      return
    self.peers[number] = peer
    self._check_met()
    await self._listen(peer, reader)

  def _refusal(self, hello: dict[str, Any]) -> str:
    """Why process 0 does not take another in, if it does not."""
    number, count = hello.get("process"), hello.get("processes")
    if count != self.count:
      return f"process 0 at {self.address}, which was started with --processes {self.count}, not {count}"
    if type(number) is not int or not 0 < number < self.count:
      return f"process 0 at {self.address}, which knows no process {number}"
    if self.met.is_set() or number in self.peers:
      return f"process 0 at {self.address}, to which another process {number} is connected"
    return ""

  async def _join(self) -> None:
    """Connects to process 0, again and again until all have met."""
    while not self.met.is_set():
      try:
        reader, writer = await self._reach("beats")
      except (OSError, TimeoutError) as error:
        self.waiting_for = f"process 0 at {self.address} ({describe(error)})"
      else:
        self.waiting_for = f"process 0 at {self.address} (something listens there and does not answer)"
        self.peers[0] = Peer(0, self.host, writer)
        await self._listen(self.peers[0], reader)
      await asyncio.sleep(RETRY_S)

  async def _reach(self, purpose: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to process 0, which has been told what it is for."""
    reader, writer = await asyncio.wait_for(asyncio.open_connection(self.host, self.port), LONGEST_HELLO_S)
    hello = {"for": purpose, "process": self.number, "processes": self.count, "host": socket.gethostname()}
    writer.write(json.dumps(hello).encode() + b"\n")
    return reader, writer

  def _check_met(self) -> None:
    """Process 0: whether all are there now; then the first meeting is over."""
    if self.number == 0 and not self.met.is_set() and len(self.peers) == self.count - 1:
      self._send({"met": socket.gethostname()})
      self.met.set()

  def _missing(self) -> str:
    missing = [str(number) for number in range(1, self.count) if number not in self.peers]
    names = ", ".join(missing[:20]) + (", …" if len(missing) > 20 else "")
    return f"process {names} of {self.count} at {self.address}"

  # ---- how the others are listened to

  async def _beat(self) -> None:
    """Writes to every peer each BEAT_S, and counts the beats that it was silent."""
    while True:
      await asyncio.sleep(BEAT_S)
      if self.number == 0 and not self.met.is_set():
        self.waiting_for = self._missing()
        self._send({"waiting": self.waiting_for})
      for peer in list(self.peers.values()):
        peer.send({})
        peer.silent_beats += 1
        if peer.silent_beats * BEAT_S > SILENCE_S:
          peer.writer.transport.abort()
          self._miss(peer, f"is lost: nothing was heard of it for {SILENCE_S} s")

  async def _listen(self, peer: Peer, reader: asyncio.StreamReader) -> None:
    """Reads what a peer says until its connection ends."""
    with contextlib.suppress(OSError, ValueError):  # a ValueError is a line without an end
      while line := await reader.readline():
        peer.silent_beats = 0
        for name, value in parse(line).items():
          if name in HEARD:
            HEARD[name](self, peer, value)
    peer.writer.close()
    self._miss(peer, "has ended: its connection closed")

  def _miss(self, peer: Peer, why: str) -> None:
    """A peer is silent or has left: before the first meeting it may come again, later it is lost."""
    if self.peers.get(peer.number) is peer:
      del self.peers[peer.number]
      if self.met.is_set() and not self.finished.is_set() and not peer.failed:
        self._leave(f"process {peer.number} of this run (on {peer.host}) {why}; {RESUME_HINT}")

  def _hear_waiting(self, peer: Peer, value: Any) -> None:
    self.waiting_for = str(value)[:500]

  def _hear_met(self, peer: Peer, host: Any) -> None:
    peer.host = str(host)[:100]
    self.met.set()

  def _hear_lost(self, peer: Peer, text: Any) -> None:
    self._leave(str(text)[:500])

  def _hear_failed(self, peer: Peer, text: Any) -> None:
    """Another process ends because of an error, which this one may have too, and then tells itself."""
    peer.failed, self._failure = True, str(text)[:500]
    self._send({"failed": self._failure}, but=peer)
    self._loop.call_later(GRACE_S, self._leave, self._failure)

  def _hear_done(self, peer: Peer, value: Any) -> None:
    peer.done = True
    self._check_finished()

  def _hear_finished(self, peer: Peer, value: Any) -> None:
    self.finished.set()

  # ---- how it ends

  async def _finish_own(self) -> None:
    self.done = True
    self._send({"done": True})
    self._check_finished()

  def _check_finished(self) -> None:
    """Process 0: whether all have finished."""
    peers = self.peers.values()
    if self.number == 0 and self.done and len(peers) == self.count - 1 and all(peer.done for peer in peers):
      self._send({"finished": True})
      self.finished.set()

  async def _close(self) -> None:
    while self.number == 0 and self.peers:
      await asyncio.sleep(0.01)
    for peer in self.peers.values():
      peer.writer.close()

  def _hurry(self) -> None:
    if self._failure:
      self._leave(self._failure)

  def _leave(self, text: str) -> None:
    """Tells the others if this is process 0, and ends this process with a line."""
    if not self.leaving:
      self.leaving = True
      self._send({"lost": text})
      self._spawn(self._end(text))

  async def _end(self, text: str) -> None:
    with contextlib.suppress(TimeoutError):
      await asyncio.wait_for(self._close(), TOLD_S)
    self.exit_lost(text)

  def _send(self, message: dict[str, Any], but: Peer | None = None) -> None:
    """Sends to all peers, but for one."""
    for peer in self.peers.values():
      if peer is not but:
        peer.send(message)

  async def _send_all(self, message: dict[str, Any]) -> None:
    self._send(message)
    await asyncio.gather(*(peer.writer.drain() for peer in self.peers.values()))

  def _spawn(self, work: Awaitable) -> None:
    self._tasks.append(self._loop.create_task(work))  # the loop itself keeps no reference

  async def _carry_jax(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The JAX of this process connects to what it takes for the coordination service."""
    try:
      there = await self._reach("jax")
    except (OSError, TimeoutError):
      writer.close()
      return
    await copy_both((reader, writer), there)


HEARD = {  # what a line may say -> what it does
  "waiting": Watch._hear_waiting,
  "met": Watch._hear_met,
  "lost": Watch._hear_lost,
  "failed": Watch._hear_failed,
  "done": Watch._hear_done,
  "finished": Watch._hear_finished,
}


def parse(line: bytes) -> dict[str, Any]:
  """What a line says; nothing if it is a beat, or of another program."""
  try:
    found = json.loads(line) if line.strip() else {}
  except (ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def describe(error: BaseException) -> str:
  return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "no answer"
