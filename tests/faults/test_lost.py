"""Two processes that only connect and end, of which one is killed or stopped between two steps of that."""

import os
import signal
import subprocess
import sys

import pytest

from jldm.core.errors import Preempted
from tests.configs import ROOT
from tests.faults.processes import DEADLINE_S, free_port
from tests.faults.several import OF_CXX

PROGRAM = """
import argparse, os, sys
import jax
from jldm.distributed import multihost, sharding
parser = argparse.ArgumentParser()
sharding.add_arguments(parser)
parser.add_argument("--at", nargs=3)
args = parser.parse_args()
where, victim, number = args.at

def hit(point):
  if point == where and int(victim) == args.process:
    os.kill(os.getpid(), int(number))

def before(module, name, point):
  call = vars(module)[name]
  setattr(module, name, lambda *given, **options: (hit(point), call(*given, **options))[1])

before(jax.distributed, "initialize", "met")
before(jax.distributed, "shutdown", "shutdown")
sharding.configure(1, args)
hit("devices")
assert multihost.broadcast(args.process + 5) == 5
hit("collective")
multihost.barrier("end")
hit("finish")
multihost.finish(0)
"""
LOST = [
  ("met", 0, signal.SIGSTOP),
  ("met", 0, signal.SIGKILL),
  ("met", 1, signal.SIGSTOP),
  ("devices", 0, signal.SIGKILL),
  ("devices", 1, signal.SIGSTOP),
  ("collective", 0, signal.SIGSTOP),
  ("collective", 1, signal.SIGKILL),
  ("finish", 0, signal.SIGKILL),
  ("finish", 1, signal.SIGSTOP),
]
FINISHED = [("shutdown", 0, signal.SIGSTOP), ("shutdown", 0, signal.SIGKILL), ("shutdown", 1, signal.SIGSTOP)]


def run(*case) -> tuple[int, str]:
  """The exit code of the process that is not hit, and what it printed."""
  port, started = free_port(), []
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  try:
    for process in range(2):
      options = dict(coordinator=f"127.0.0.1:{port}", processes=2, process=process)
      command = [sys.executable, "-c", PROGRAM, "--at", *(str(int(x)) if x != case[0] else x for x in case)]
      command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
      started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    other = started[1 - case[1]]
    _, output = other.communicate(timeout=90)
    return other.returncode, output
  finally:
    for process in started:
      process.kill()
      process.wait(DEADLINE_S)


@pytest.mark.slow
@pytest.mark.parametrize("case", LOST, ids=str)
def test_it_is_named_and_the_other_ends(case):
  code, output = run(*case)
  assert code == Preempted.EXIT_CODE, output
  assert output.count(f"process {case[1]} of this run (on ") == 1, output
  assert not any(word in output for word in OF_CXX), output


@pytest.mark.slow
@pytest.mark.parametrize("case", FINISHED, ids=str)
def test_once_all_have_finished_nobody_is_lost(case):
  code, output = run(*case)
  assert code == 0 and "of this run" not in output, output
  assert not any(word in output for word in OF_CXX), output
