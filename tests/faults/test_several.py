"""Two processes of one run, of which one is asked to end, or dies, or does not fit: the other ends
too, and both go on.
"""

import random
import signal
import time

import pytest

from jldm.core.errors import RESUME_HINT, Preempted
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from tests.configs import STAGES
from tests.faults import several
from tests.faults.processes import DEADLINE_S, assert_same_bits, both, log_lines, logged, until, write_config
from tests.faults.several import Case, fault

pytestmark = pytest.mark.slow
STEPS = 12
CHANGES = {
  f"{stage}__{name}": value
  for stage in STAGES
  for name, value in (("save_every_steps", 5), ("picture_every_steps", 4))
}
HITS = (  # every signal to every process, in the order of a training: each goes on in the workdir before it
  Case("compiling", signal.SIGSTOP, 1),
  Case("first_step", signal.SIGKILL, 0),
  Case("saving", signal.SIGSTOP, 0),
  Case("encoding", signal.SIGKILL, 1),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return write_config(tmp_path_factory.mktemp("config"), STEPS, **CHANGES)


def ends(started) -> list[int]:
  return [process.wait(DEADLINE_S) for process in started]


def committed(workdir, stage) -> list[int]:
  with Checkpoints(workdirs.checkpoints_folder(workdir, stage), read_only=True) as saved:
    return saved.steps()


def test_whichever_is_asked_to_end_or_dies_both_end_and_go_on_to_the_same_bits(config):
  unbroken, workdir = config.parent / "unbroken", config.parent / "w"
  with both(config, unbroken) as (started, logs):
    assert ends(started) == [0, 0], log_lines(logs[0])
  asked = 0
  for number, (which, stage) in enumerate(((1, "autoencoder"), (0, "denoiser"))):
    with both(config, workdir) as (started, logs):
      assert until(lambda stage=stage: logged(workdir, stage) > 1, started[0])
      before = committed(workdir, stage)
      started[which].send_signal(signal.SIGTERM)
      assert ends(started) == [Preempted.EXIT_CODE] * 2, [log_lines(log) for log in logs]
      (line,) = [line for line in log_lines(logs[0]) if "SIGTERM" in line]
      assert RESUME_HINT in line and line in log_lines(logs[1]), "both stopped after the same step"
      assert number or "autoencoder step" in line
      asked += committed(workdir, stage) != before
    assert not (workdir / "lock").exists()
  assert asked, "a step was committed for the notice"
  with both(config, workdir) as (started, logs):
    start = logged(workdir, "denoiser")
    if until(lambda: logged(workdir, "denoiser") > start, started[0]):  # it may come to its end first
      started[1].send_signal(signal.SIGKILL)
      died = time.monotonic()
      code = started[0].wait(DEADLINE_S)
      assert not fault(Case("denoiser", signal.SIGKILL, 1), code, log_lines(logs[0]), time.monotonic() - died)
  with both(config, workdir) as (started, logs):
    assert ends(started) == [0, 0], log_lines(logs[0])
  assert_same_bits(unbroken, workdir, STEPS)


@pytest.fixture(scope="module")
def hit(tmp_path_factory):
  """A config and a workdir."""
  folder = tmp_path_factory.mktemp("hit")
  return write_config(folder, several.STEPS, **several.CHANGES), folder / "w"


@pytest.mark.parametrize("case", HITS, ids=str)
def test_whatever_happens_to_one_the_other_names_it_and_ends(hit, case):
  outcome = several.strike(*hit, case, random.Random(0))
  assert outcome is not None and not outcome.fault, outcome
  assert case.victim == 0 or not (hit[1] / "lock").exists(), "the one that is left releases the workdir"


def test_a_mistake_of_one_is_reported_once_and_ends_both(config, tmp_path):
  with both(config, tmp_path / "here", tmp_path / "there") as (started, logs):
    codes = ends(started)
    assert codes == [Preempted.EXIT_CODE, 2]
    assert "has ended with exit code 2; its own output says why" in log_lines(logs[0])[-1]
    assert (
      "is not visible to this process; choose a --workdir that all processes share" in log_lines(logs[1])[-1]
    )
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken" / "other.txt").write_text("of someone else")
  with both(config, tmp_path / "taken") as (started, logs):
    codes = ends(started)
    assert codes == [2, Preempted.EXIT_CODE]
    assert "process 0 of this run (on " in log_lines(logs[1])[-1]
    assert "is not empty and not a workdir" in log_lines(logs[0])[-1]
