"""A full disk, for real: one line, exit code 2, what was committed whole, and the same bits once there is
room.
"""

import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from tests.configs import STAGES
from tests.faults.processes import DEADLINE_S, assert_same_bits, log_lines, running, write_config

STEPS = 12


@pytest.fixture
def small_disk(tmp_path):
  """resize(kB) of a file system of its own, where this user may mount one."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mount = lambda *options: (
    subprocess.run(["mount", *options], capture_output=True, timeout=30).returncode == 0
  )
  if os.geteuid() or not mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)):
    pytest.skip("no file system can be mounted here")
  yield folder, lambda size: mount("-o", f"remount,{size}", str(folder))
  subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=30)


def committed(workdir) -> dict[str, list[int]]:
  """The committed steps of each stage, the newest of which is sound."""
  actual = {}
  for stage in STAGES:
    with Checkpoints(workdirs.checkpoints_folder(workdir, stage), read_only=True) as saved:
      actual[stage] = saved.steps()
      assert saved.latest() == (actual[stage][-1] if actual[stage] else None)
  return actual


@pytest.mark.slow
def test_a_training_whose_disk_fills_goes_on_once_there_is_room(tmp_path, small_disk):
  """Room is made bit by bit, so that the disk fills while logs, checkpoints, manifests, latents and
  pictures are written.
  """
  config = write_config(tmp_path, STEPS, autoencoder__save_every_steps=3, denoiser__save_every_steps=3)
  with running(config, tmp_path / "unbroken") as process:
    assert process.wait(DEADLINE_S) == 0
  disk, resize = small_disk
  workdir, before, ends = disk / "w", {stage: [] for stage in STAGES}, []
  for size in range(100, 10_000, 400):
    assert resize(f"size={size}k")
    with running(config, workdir, log=tmp_path / f"{size}.log") as process:
      ends.append(process.wait(DEADLINE_S))
    if not ends[-1]:
      break
    line = log_lines(tmp_path / f"{size}.log")[-1]
    assert ends[-1] == 2 and line.startswith("error: ") and "No space left on device" in line, log_lines(
      tmp_path / f"{size}.log"
    )
    assert "Traceback" not in (tmp_path / f"{size}.log").read_text()
    after = committed(workdir)
    assert all(max(after[stage], default=0) >= max(before[stage], default=0) for stage in before)
    before = after
  assert ends[-1] == 0 and len(ends) > 3
  assert_same_bits(tmp_path / "unbroken", workdir, STEPS)
  assert resize("ro")
  with running(config, workdir, log=tmp_path / "ro.log") as process:
    assert process.wait(DEADLINE_S) == 2
  (line,) = log_lines(tmp_path / "ro.log")
  assert "Read-only file system" in line


def test_a_save_that_the_disk_refuses_is_one_line_and_the_step_before_stays(tmp_path):
  """A limit on the size of files stands for a disk that fills amid a background save."""
  like = {"state": {"a": jax.ShapeDtypeStruct((400, 300), jnp.float32)}}
  array = lambda seed: jax.random.normal(jax.random.key(seed), (400, 300))
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  with Checkpoints(tmp_path / "c") as saved:
    saved.save(1, {"state": {"a": array(1)}})
    saved.commit(wait=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
      with pytest.raises(
        UserError, match=r"step 2 could not be saved: File too large; step 1 is the newest in .*/c, and the "
      ):
        saved.save(2, {"state": {"a": array(2)}})
        saved.commit(wait=True)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert saved.latest() == 1
    np.testing.assert_array_equal(saved.restore(1, like)["state"]["a"], array(1))
    saved.save(3, {"state": {"a": array(3)}})
  with Checkpoints(tmp_path / "c") as saved:
    assert (saved.steps(), saved.latest()) == ([1, 3], 3)
    np.testing.assert_array_equal(saved.restore(3, like)["state"]["a"], array(3))
    assert not list((tmp_path / "c").glob("2*")), "what was half written is gone"


@pytest.mark.parametrize("name", ["ENOSPC", "EROFS", "EACCES", "EDQUOT", "EIO"])
def test_what_a_disk_says_is_one_line(tmp_path, name):
  import errno

  code = getattr(errno, name)
  message = f"cannot write to workdir .*metrics.jsonl: {os.strerror(code)}; .*goes on"
  with pytest.raises(UserError, match=message) as error, workdirs.user_error_if_disk_fails(tmp_path):
    raise OSError(code, os.strerror(code), str(tmp_path / "metrics.jsonl"))
  assert "\n" not in str(error.value)


def test_a_bug_is_not_the_disks(tmp_path):
  with pytest.raises(FileNotFoundError), workdirs.user_error_if_disk_fails(tmp_path):
    (tmp_path / "absent").read_bytes()


def test_a_workdir_that_cannot_be_made(tmp_path, capsys):
  """/proc takes no files, whoever asks."""
  from jldm.cli import main

  if sys.platform != "linux":
    pytest.skip("no /proc")
  config = write_config(tmp_path, STEPS)
  assert main(["train", "--config", str(config), "--workdir", "/proc/w"]) == 2
  error = capsys.readouterr().err
  assert "choose another --workdir" in error and error.count("\n") == 1
