"""Processes that meet, finish, fail or are lost: their watches alone, all in this process."""

import asyncio
import contextlib
import json
import os
import socket
import threading
import time

import pytest

from jldm.core.errors import RESUME_HINT, UserError
from jldm.distributed import heartbeat, relay
from jldm.distributed.heartbeat import Watch, free_port

WAIT_S = 60  # for what comes within a second or two on a machine that has nothing else to do
BEAT_S, SILENCE_S = 0.1, 2


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  limits = dict(BEAT_S=BEAT_S, SILENCE_S=SILENCE_S, RETRY_S=0.1, GRACE_S=0.5, TOLD_S=0.5)
  for name, value in (limits | {"LEAVE_S": 3600}).items():  # this process does not exit
    monkeypatch.setattr(heartbeat, name, value)
  monkeypatch.setattr(relay, "RETRY_S", 0.1)


class Run:
  """Watches of one run, and what each was ended with."""

  def __init__(self, count: int):
    self.address, self.count = f"127.0.0.1:{free_port()}", count
    self.watches: dict[int, Watch] = {}
    self.loops: list[asyncio.AbstractEventLoop] = []
    self.lost: dict[int, list[str]] = {}

  def start(self, number: int, count: int | None = None) -> Watch:
    texts = self.lost.setdefault(number, [])
    watch = Watch(self.address, count or self.count, number, texts.append)
    self.loops.append(watch._loop)
    watch.start()
    self.watches[number] = watch
    return watch

  def stop(self, number: int) -> None:
    """As a kill: every connection closes without a word."""
    watch = self.watches.pop(number)

    def abort():
      watch.met.set()  # it does not connect again
      watch.leaving = True
      for peer in watch.peers.values():
        peer.writer.transport.abort()

    watch._loop.call_soon_threadsafe(abort)


@pytest.fixture
def run():
  """Makes runs, whose threads end with the test."""
  made = []

  def make(count: int, numbers=()) -> Run:
    made.append(Run(count))
    for number in numbers:
      made[-1].start(number)
    return made[-1]

  yield make
  for loop in (loop for each in made for loop in each.loops):

    async def end():
      current = asyncio.current_task()
      tasks = [task for task in asyncio.all_tasks() if task is not current]
      for task in tasks:
        task.cancel()
      await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(end(), loop).result(WAIT_S)
    loop.call_soon_threadsafe(loop.stop)


def wait_for(condition) -> None:
  end = time.monotonic() + WAIT_S
  while not condition():
    assert time.monotonic() < end, "it did not come"
    time.sleep(0.01)


@contextlib.contextmanager
def silent(run: Run, number: int):
  """A process that says its number, and then neither a word nor the end of its connection."""
  host, port = run.address.split(":")
  with socket.create_connection((host, int(port))) as connection:
    hello = {"for": "beats", "process": number, "processes": run.count, "host": "elsewhere"}
    connection.sendall(json.dumps(hello).encode() + b"\n")
    yield connection


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_they_meet_in_any_order_and_finish_together(run, order):
  whole = run(3)
  for number in order[:2]:
    whole.start(number)
  time.sleep(5 * BEAT_S)
  assert not any(watch.met.is_set() for watch in whole.watches.values())
  whole.start(order[2])
  for watch in whole.watches.values():
    watch.meet(WAIT_S)
  ended = [threading.Thread(target=watch.finish, args=(0, WAIT_S)) for watch in whole.watches.values()]
  for thread in ended[:2]:
    thread.start()
  time.sleep(5 * BEAT_S)
  assert not any(watch.finished.is_set() for watch in whole.watches.values()), "one still works"
  ended[2].start()
  for thread in ended:
    thread.join(WAIT_S)
  assert all(watch.finished.is_set() for watch in whole.watches.values())
  whole.stop(1), whole.stop(0)
  time.sleep(5 * BEAT_S)
  assert not any(whole.lost.values()), "whoever leaves after the end is not lost"


def test_who_is_missing_is_said_and_the_wait_ends(run, capsys, monkeypatch):
  monkeypatch.setattr(heartbeat, "REPORT_S", 0.4)
  part = run(4, (0, 2))
  for number in (0, 2):
    with pytest.raises(
      UserError, match=rf"within 2 s at --coordinator {part.address}; missing: process 1, 3 of 4"
    ):
      part.watches[number].meet(2)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) >= 2
  assert f"waiting for process 1, 3 of 4 at {part.address}, for" in lines[-1]


def test_process_0_that_is_not_there_is_missed(run, monkeypatch):
  alone = run(2, (1,))
  with pytest.raises(UserError, match=rf"missing: process 0 at {alone.address} \(Connection refused\)"):
    alone.watches[1].meet(1)
  with socket.create_server(("127.0.0.1", 0)) as other:
    alone.address = f"127.0.0.1:{other.getsockname()[1]}"
    with pytest.raises(UserError, match="something listens there and does not answer"):
      alone.start(1).meet(1)


@pytest.mark.parametrize(
  "number, count, texts",
  [(1, 3, "was started with --processes 2, not 3"), (1, 2, "to which another process 1 is connected")],
)
def test_one_that_does_not_belong_is_refused(run, number, count, texts):
  whole = run(2, (0, 1))
  whole.watches[0].meet(WAIT_S)
  with pytest.raises(UserError, match=texts):
    whole.start(number, count).meet(1)
  assert not whole.lost[0]


def test_a_port_that_is_taken_is_refused(run):
  taken = run(2, (0,))
  with pytest.raises(
    UserError, match=rf"{taken.address}: process 0 cannot listen at port \d+ \(Address already in"
  ):
    taken.start(0)


def test_one_that_dies_before_the_meeting_is_missing_again(run):
  whole = run(3, (0, 1))
  wait_for(lambda: 1 in whole.watches[0].peers)
  whole.stop(1)
  wait_for(lambda: whole.watches[0].waiting_for.startswith("process 1, 2 of 3"))
  with silent(whole, 1):
    wait_for(lambda: 1 in whole.watches[0].peers)
    wait_for(lambda: 1 not in whole.watches[0].peers)
  for number in (1, 2):
    whole.start(number)
  for watch in whole.watches.values():
    watch.meet(WAIT_S)
  assert not any(whole.lost.values())


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_whoever_dies_is_named_once_by_every_other(run, killed):
  whole = run(3, (0, 1, 2))
  for watch in whole.watches.values():
    watch.meet(WAIT_S)
  whole.stop(killed)
  wait_for(lambda: all(whole.lost[number] for number in whole.watches))
  time.sleep(5 * BEAT_S)
  for number in whole.watches:
    (line,) = whole.lost[number]
    assert line.startswith(f"process {killed} of this run (on {socket.gethostname()}) has ended")
    assert RESUME_HINT in line


def test_one_that_hangs_is_lost_after_the_limit(run):
  whole = run(3, (0, 2))
  began = time.monotonic()
  with silent(whole, 1):
    wait_for(lambda: whole.lost[0] and whole.lost[2])
  assert time.monotonic() - began >= SILENCE_S
  assert whole.lost[0] == whole.lost[2]
  assert whole.lost[0][0].startswith(
    "process 1 of this run (on elsewhere) is lost: nothing was heard of it for"
  )


@pytest.mark.slow
def test_a_process_that_had_no_time_takes_no_other_for_silent(run):
  """As after a suspension of this one: what the others sent meanwhile is there."""
  whole = run(2, (0, 1))
  for watch in whole.watches.values():
    watch.meet(WAIT_S)
  for watch in whole.watches.values():
    watch._loop.call_soon_threadsafe(time.sleep, 2 * SILENCE_S)
  time.sleep(3 * SILENCE_S)
  assert not any(whole.lost.values())


def test_one_that_finished_and_then_dies_is_lost_for_one_that_works(run):
  whole = run(2, (0, 1))
  for watch in whole.watches.values():
    watch.meet(WAIT_S)
  assert not whole.watches[1].finish(0, 0.2)
  whole.stop(1)
  wait_for(lambda: whole.lost[0])


def test_one_that_fails_says_so_and_the_others_have_time_for_a_mistake_of_their_own(run):
  whole = run(3, (0, 1, 2))
  for watch in whole.watches.values():
    watch.meet(WAIT_S)
  began = time.monotonic()
  whole.watches[1].fail(2)
  whole.stop(1)
  wait_for(lambda: whole.lost[0] and whole.lost[2])
  assert time.monotonic() - began >= heartbeat.GRACE_S
  expected = (
    f"process 1 of this run (on {socket.gethostname()}) has ended with exit code 2; its own output says why"
  )
  assert whole.lost[0] == whole.lost[2] == [expected]


def test_bytes_of_others_at_the_port_change_nothing(run):
  part = run(2, (0,))
  host, port = part.address.split(":")
  for junk in (
    b"GET / HTTP/1.1\r\n\r\n",
    b"[1, 2]\n",
    b"\xff" * 200_000,
    b'{"process": [1], "processes": 2}\n',
    b"",
  ):
    with socket.create_connection((host, int(port))) as connection, contextlib.suppress(OSError):
      connection.sendall(junk)
  part.start(1)
  part.watches[0].meet(WAIT_S)
  assert not part.lost[0]


def test_jax_is_reached_through_the_port_and_never_told_of_an_end(run):
  whole = run(2, (0, 1))
  first, second = (whole.watches[number] for number in (0, 1))
  first.meet(WAIT_S)
  data = os.urandom(300_000)
  with socket.create_server(("127.0.0.1", int(first.jax_address.split(":")[1]))) as service:
    host, port = second.jax_address.split(":")
    with socket.create_connection((host, int(port))) as client:
      client.settimeout(WAIT_S)
      sender = threading.Thread(target=client.sendall, args=(data,))
      sender.start()
      served, _ = service.accept()
      served.settimeout(WAIT_S)
      assert received(served, len(data)) == data
      served.sendall(data[::-1])
      assert received(client, len(data)) == data[::-1]
      served.close()
      client.settimeout(5 * BEAT_S)
      for _ in range(5):
        client.sendall(b"more")  # what is written to a connection that has ended makes its next write fail
        with pytest.raises(TimeoutError):
          client.recv(1)


def received(connection: socket.socket, size: int) -> bytes:
  data = b""
  while len(data) < size:
    data += connection.recv(2**16)
  return data
