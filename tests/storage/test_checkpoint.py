"""Checkpoints: bit for bit, on any devices, and nothing lost or believed that a kill or a bad disk left."""

import json
import logging
import os
from pathlib import Path
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jldm.core.errors import UserError
from jldm.storage import checkpoint
from jldm.storage.checkpoint import Checkpoints


@struct.dataclass
class State:
  step: jax.Array
  params: Any
  extra: Any
  opt_state: Any


def make_state(seed: int) -> State:
  """The kinds of tree that training has: NamedTuples, empty containers, a scalar, float32 and bfloat16."""
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {
    "Dense_0": {"kernel": jax.random.normal(keys[0], (16, 8)), "bias": jnp.zeros(8)},
    "low": (jax.random.normal(keys[1], (8, 4), jnp.bfloat16), ()),
  }
  transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
  grads = jax.tree.map(jnp.ones_like, params)
  return State(
    jnp.int32(seed), params, {"codebook": {}}, transform.update(grads, transform.init(params), params)[1]
  )


def assert_same(restored: Any, saved: Any) -> None:
  """The same tree types, and leaves the same to the bit."""
  assert jax.tree.structure(restored) == jax.tree.structure(saved)
  for (path, new), old in zip(jax.tree.leaves_with_path(restored), jax.tree.leaves(saved)):
    new, old = np.asarray(new), np.asarray(old)
    assert (new.dtype, new.shape, new.tobytes()) == (old.dtype, old.shape, old.tobytes()), (
      jax.tree_util.keystr(path)
    )


def save_all(folder: Path, *steps: int) -> None:
  with Checkpoints(folder, keep=9) as checkpoints:
    for step in steps:
      checkpoints.save(step, {"state": make_state(step), "ema": make_state(step).params})


def sharded(tree: Any, devices: int) -> Any:
  """Shapes with shardings: the first axis over the devices where it divides."""
  mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
  divides = lambda leaf: leaf.ndim and leaf.shape[0] % devices == 0
  place = lambda leaf: NamedSharding(mesh, PartitionSpec("data") if divides(leaf) else PartitionSpec())
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf)), tree)


def test_round_trip(tmp_path):
  saved = {"state": make_state(3), "codec": {"mean": jnp.arange(4.0)}, "nothing": {"a": (), "b": {}}}
  like = jax.eval_shape(lambda: saved)
  with jax.transfer_guard("disallow"), Checkpoints(tmp_path) as checkpoints:  # as a training may set it
    checkpoints.save(3, saved)
    checkpoints.commit(wait=True)
    assert (checkpoints.latest(), checkpoints.items(3)) == (3, ["codec", "state"])
    assert_same(checkpoints.restore(3, like), saved)
    assert_same(checkpoints.restore(3, {"codec": like["codec"]}), {"codec": saved["codec"]})  # one item alone


def test_a_clock_that_jumps_by_half_an_hour_fails_no_save(tmp_path, monkeypatch):
  rng, wall = random.Random(0), time.time
  monkeypatch.setattr(time, "time", lambda: wall() + rng.choice([-1800, 0, 1800]))
  with Checkpoints(tmp_path) as checkpoints:
    for step in range(1, 7):
      checkpoints.save(step, {"state": make_state(step)})
      checkpoints.commit(wait=True)
    assert checkpoints.latest() == 6
    assert_same(checkpoints.restore(6, {"state": make_state(6)})["state"], make_state(6))


@pytest.mark.parametrize("before, after", [(1, 8), (8, 1), (8, 2)])
def test_other_devices(tmp_path, before, after):
  saved = jax.device_put(
    make_state(2), jax.tree.map(lambda leaf: leaf.sharding, sharded(make_state(2), before))
  )
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(2, {"state": saved})
    checkpoints.commit(wait=True)
    like = sharded(saved, after)
    restored = checkpoints.restore(2, {"state": like})["state"]
  assert_same(restored, saved)
  assert jax.tree.all(jax.tree.map(lambda new, leaf: new.sharding == leaf.sharding, restored, like))
  assert len(restored.params["Dense_0"]["kernel"].sharding.device_set) == after


def test_placed_like_arrays(tmp_path):
  """Like a committed array: on its device; like a fresh one or a shape alone: free to join arrays on
  other devices.
  """
  save_all(tmp_path, 1)
  reader, fresh, device = Checkpoints(tmp_path, read_only=True), make_state(1), jax.devices()[5]
  there = reader.restore(1, {"state": jax.device_put(fresh, device)})["state"]
  assert there.step.sharding == SingleDeviceSharding(device)
  for like in (fresh, jax.eval_shape(lambda: fresh)):
    free = reader.restore(1, {"state": like})["state"]
    assert (free.params["Dense_0"]["bias"] + there.params["Dense_0"]["bias"]).devices() == {device}


@pytest.mark.parametrize("devices", [1, 8])
def test_donated_after_save(tmp_path, devices):
  like = {f"layer_{i}": jax.ShapeDtypeStruct((64, 4096), jnp.float32) for i in range(24)}
  full = {name: np.full(leaf.shape, i, leaf.dtype) for i, (name, leaf) in enumerate(like.items())}
  held = jax.device_put(full, jax.tree.map(lambda leaf: leaf.sharding, sharded(like, devices)))
  held = first = jax.tree.map(lambda leaf: leaf + 0, held)  # in memory of its own
  overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"state": held})
    for _ in range(5):
      held = overwrite(held)
    checkpoints.save(2, {"state": held})
    held = overwrite(jax.tree.map(lambda leaf: leaf + 1, held))
  assert first["layer_0"].is_deleted()
  reader = Checkpoints(tmp_path, read_only=True)
  assert_same(reader.restore(1, {"state": like})["state"], full)
  assert_same(reader.restore(2, {"state": like})["state"], held)


def damages(data: bytes, rng: random.Random) -> dict[str, bytes | None]:
  """What may happen to a file's bytes; None is its loss."""
  at = rng.randrange(len(data))
  flipped = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
  return {"flipped": flipped, "cut": data[:-1], "emptied": b"", "longer": data + b"\0", "lost": None}


def test_damage_to_any_file(tmp_path, capsys):
  save_all(tmp_path, 10, 20)
  files = [path for path in sorted((tmp_path / "20").rglob("*")) if path.is_file()]
  assert len(files) > 15
  for path in files:
    data = path.read_bytes()
    for kind, bad in damages(data, random.Random(0)).items():
      path.unlink() if bad is None else path.write_bytes(bad)
      assert Checkpoints(tmp_path, read_only=True).latest() == 10, (path, kind)
      record = f"checkpoint {tmp_path / '20'} is damaged: {path.relative_to(tmp_path / '20')} "
      record += f"{'is missing' if bad is None else 'has changed'}; using step 10 instead\n"
      assert capsys.readouterr().err == record
    path.write_bytes(data)
  assert Checkpoints(tmp_path, read_only=True).latest() == 20


def test_flips_in_a_manifest(tmp_path):
  """No flip of a bit makes another good manifest: all of the head with the step, and a sample of the rest."""
  save_all(tmp_path, 1)
  path, rng = tmp_path / "1.manifest.json", random.Random(0)
  data = path.read_bytes()
  head = [(at, bit) for at in range(data.index(b"files") + 9) for bit in range(8)]
  for at, bit in head + [(at, rng.randrange(8)) for at in range(0, len(data), 29)]:
    path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
    assert checkpoint._fault(tmp_path, 1), (at, bit)


def test_damaged_steps_are_set_aside(tmp_path, capsys):
  save_all(tmp_path, 1, 2, 3)
  (tmp_path / "2" / "ema" / "manifest.ocdbt").unlink()
  for lines in (2, 1):  # the second time step 3, saved again, is damaged again
    (tmp_path / "3" / "state" / "_METADATA").write_text("{}")
    with pytest.raises(UserError, match=r"3 is damaged: state/_METADATA has changed"):
      Checkpoints(tmp_path, read_only=True).restore(3, {"state": make_state(3)})
    with Checkpoints(tmp_path) as checkpoints:
      assert (checkpoints.latest(), checkpoints.steps()) == (1, [1])
      record = capsys.readouterr().err.splitlines()
      assert len(record) == lines and all("using step 1 instead (moved to " in line for line in record)
      aside = {path.name for path in (tmp_path / "damaged").iterdir()}
      assert aside == {"2", "2.manifest.json", "3", "3.manifest.json"}
      checkpoints.save(3, {"state": make_state(3)})


def rewritten_manifest(folder: Path, step: int) -> None:
  """A manifest of whatever the step holds now: it lies if a file was changed."""
  manifest = {"step": step, "files": checkpoint._fingerprints(folder / str(step))}
  (folder / f"{step}.manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"[" * 200_000,
    b'{"tree_metadata":' * 50_000,
    b"\xff\xfe\x00",
    b'{"tree_metadata": {"a": 3}}',
  ],
  ids=lambda content: repr(content[:20]),
)
def test_orbax_files_of_other_content_are_one_line_though_the_manifest_agrees(tmp_path, content):
  save_all(tmp_path, 1)
  for path in sorted(path for path in (tmp_path / "1").rglob("*") if path.is_file()):
    data = path.read_bytes()
    path.write_bytes(content)
    rewritten_manifest(tmp_path, 1)
    try:
      assert_same(
        Checkpoints(tmp_path, read_only=True).restore(1, {"state": make_state(1)})["state"], make_state(1)
      )
    except UserError as error:
      assert str(tmp_path / "1") in str(error) and "\n" not in str(error), path
    path.write_bytes(data)


def test_metadata_that_lie_about_names_and_types_are_one_line(tmp_path):
  save_all(tmp_path, 1)
  path = tmp_path / "1" / "state" / "_METADATA"
  whole = json.loads(path.read_bytes())

  def places(node):
    for key in list(node) if isinstance(node, dict) else range(len(node)):
      yield node, key
      if isinstance(node[key], (dict, list)):
        yield from places(node[key])

  for node, key in list(places(whole))[::7]:
    old, node[key] = node[key], [{"a": [3]}, None]
    path.write_text(json.dumps(whole))
    node[key] = old
    rewritten_manifest(tmp_path, 1)
    try:
      assert_same(
        Checkpoints(tmp_path, read_only=True).restore(1, {"state": make_state(1)})["state"], make_state(1)
      )
    except UserError as error:
      assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["2.manifest.json", "2/state/_METADATA", "2/_CHECKPOINT_METADATA"])
def test_a_pipe_is_not_waited_for(tmp_path, capsys, name):
  save_all(tmp_path, 1, 2)
  (tmp_path / name).unlink()
  os.mkfifo(tmp_path / name)
  with pytest.raises(UserError, match=r"2 is damaged: .*(is no file|is missing)"):
    Checkpoints(tmp_path, read_only=True).restore(2, {"state": make_state(2)})
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.latest() == 1
  assert "using step 1 instead" in capsys.readouterr().err


def test_files_that_the_manifest_does_not_name_are_not_believed(tmp_path):
  """Nor is a manifest of no files: it would agree with anything."""
  save_all(tmp_path, 1)
  (tmp_path / "1" / "state" / ".DS_Store").touch()
  assert Checkpoints(tmp_path, read_only=True).latest() == 1
  (tmp_path / "1" / "state" / "more").touch()
  with pytest.raises(UserError, match="state/more is not in its manifest"):
    Checkpoints(tmp_path, read_only=True).items(1)
  (tmp_path / "1.manifest.json").write_text('{"step": 1, "files": {}}')
  with pytest.raises(UserError, match="is not in its manifest"):
    Checkpoints(tmp_path, read_only=True).items(1)


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[2])}
CHILD = """
import pathlib, signal, sys
import jax.numpy as jnp
from jldm.storage.checkpoint import Checkpoints
signal.alarm(60)
with Checkpoints(pathlib.Path(sys.argv[1]), keep=1) as checkpoints:
  print("open", flush=True)
  step = checkpoints.latest() or 0
  while True:
    step += 1
    checkpoints.save(step, {"state": [jnp.full((64, 64), step)] * 8, "step": jnp.int32(step)})
    print(step - 1, flush=True)
    if step % 3:
      checkpoints.commit(wait=True)
"""


@pytest.mark.slow
def test_kill_at_any_moment(tmp_path):
  """keep=1, so that at every moment the only committed step is the one to continue from."""
  rng, reached = random.Random(time.time_ns()), 0
  like = {
    "state": [jax.ShapeDtypeStruct((64, 64), jnp.int32)] * 8,
    "step": jax.ShapeDtypeStruct((), jnp.int32),
  }
  command = [sys.executable, "-c", CHILD, tmp_path]
  for _ in range(7):
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    lines = [child.stdout.readline() for _ in range(rng.randint(1, 6))]
    time.sleep(delay := rng.uniform(0, 0.2))
    child.send_signal(signal.SIGKILL)
    reported = [int(line) for line in [*lines, *child.stdout][1:]]
    child.wait()
    assert lines[0] == "open\n"
    reader = Checkpoints(tmp_path, read_only=True)
    step = reader.latest() or 0
    assert step >= max([reached, *reported]), (delay, reached, reported)
    if step:
      restored = reader.restore(step, like)
      assert {int(value) for leaf in jax.tree.leaves(restored) for value in np.unique(leaf)} == {step}, delay
    reached = step
  assert reached >= 3, "the children must get somewhere"
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    assert checkpoints.steps() == [reached]
    assert {path.name for path in tmp_path.iterdir()} == {str(reached), f"{reached}.manifest.json"}


def test_leftovers_of_a_kill(tmp_path):
  """Each state in which a kill may leave the folder, by hand; what is not ours stays."""
  save_all(tmp_path, 1, 2, 3, 4)
  (tmp_path / "4.manifest.json").unlink()  # killed before the commit of 4
  shutil.copytree(
    tmp_path / "4" / "ema", tmp_path / "5.orbax-checkpoint-tmp" / "ema"
  )  # in the middle of a save
  (tmp_path / "5.manifest.json.tmp").write_text('{"step": 5, "fi')  # in the middle of a manifest
  shutil.rmtree(tmp_path / "1")  # by hand
  theirs = {"notes.txt", "007", "x4", "4.orbax"}
  for name in theirs:
    (tmp_path / name).touch()
  assert Checkpoints(tmp_path, read_only=True).steps() == [2, 3]
  with Checkpoints(tmp_path) as checkpoints:
    assert {path.name for path in tmp_path.iterdir()} == {
      "2",
      "2.manifest.json",
      "3",
      "3.manifest.json",
    } | theirs
    checkpoints.save(4, {"state": make_state(40)})
    checkpoints.commit(wait=True)
    assert checkpoints.latest() == 4
    assert_same(checkpoints.restore(4, {"state": make_state(0)})["state"], make_state(40))


def test_keep(tmp_path):
  with pytest.raises(ValueError, match="keep=0"):
    Checkpoints(tmp_path, keep=0)
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in range(1, 6):
      checkpoints.save(step, {"state": jnp.int32(step)})
      if step > 2:  # the step before is whole and committed before an older one goes
        assert checkpoints.steps() == [step - 2, step - 1]
  assert {path.name for path in tmp_path.iterdir()} == {"4", "4.manifest.json", "5", "5.manifest.json"}
  for step in (4, 5):
    manifest = json.loads((tmp_path / f"{step}.manifest.json").read_text())
    files = {path for path in (tmp_path / str(step)).rglob("*") if path.is_file()}
    assert (manifest["step"], {tmp_path / str(step) / name for name in manifest["files"]}) == (step, files)


def test_multiples_stay_in_addition_to_the_last(tmp_path):
  with Checkpoints(tmp_path, keep=1, keep_every=3) as checkpoints:
    for step in range(1, 9):
      checkpoints.save(step, {"state": jnp.int32(step)})
  assert Checkpoints(tmp_path, read_only=True).steps() == [3, 6, 8]


def test_old_step_outlives_an_uncommitted_one(tmp_path):
  save_all(tmp_path, 1)
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(2, {"state": make_state(2)})
    checkpoints._pending[1].result(timeout=60)  # all of Orbax's part is done
    reader = Checkpoints(tmp_path, read_only=True)
    assert ((tmp_path / "2").exists(), reader.steps(), reader.latest()) == (True, [1], 1)
    assert_same(reader.restore(1, {"state": make_state(0)})["state"], make_state(1))
  assert reader.steps() == [2]


def test_commit_does_not_wait(tmp_path, monkeypatch):
  ended, fingerprints = threading.Event(), checkpoint._fingerprints
  monkeypatch.setattr(
    checkpoint, "_fingerprints", lambda folder: fingerprints(folder) if ended.wait(20) else None
  )
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"state": make_state(1)})
    checkpoints.commit()
    assert checkpoints.steps() == [] and not checkpoints._pending[1].done()
    ended.set()
    checkpoints._pending[1].result(timeout=60)
    checkpoints.commit()
    assert checkpoints.steps() == [1]


def test_read_only_changes_nothing(tmp_path):
  save_all(tmp_path, 1, 2)
  (tmp_path / "2" / "state" / "_METADATA").unlink()
  (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
  contents = lambda: {
    path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [tmp_path, *tmp_path.rglob("*")]
  }
  before = contents()
  with Checkpoints(tmp_path, read_only=True) as reader:
    assert reader.latest() == 1
    reader.restore(1, {"state": make_state(1), "ema": make_state(1).params})
    with pytest.raises(ValueError, match="reading only"):
      reader.save(4, {"state": make_state(4)})
  assert contents() == before


def test_step_removed_under_a_reader(tmp_path, monkeypatch, capsys):
  save_all(tmp_path, 1, 2)
  fault = checkpoint._fault

  def removed_first(folder, step):
    if step == 2:
      (folder / "2.manifest.json").unlink()
      shutil.rmtree(folder / "2")
    return fault(folder, step)

  monkeypatch.setattr(checkpoint, "_fault", removed_first)
  assert Checkpoints(tmp_path, read_only=True).latest() == 1
  assert not capsys.readouterr().err


MISMATCHES = {
  "missing": (
    {"a": jnp.zeros(2), "b": jnp.zeros(3), "c": [jnp.zeros(4)]},
    "c/0 is not stored, expected float32[4]",
  ),
  "extra": ({"a": jnp.zeros(2)}, "b is float32[3], expected none"),
  "shape": ({"a": jnp.zeros((2, 1)), "b": jnp.zeros(3)}, "a is float32[2], expected float32[2, 1]"),
  "dtype": ({"a": jnp.zeros(2), "b": jnp.zeros(3, jnp.bfloat16)}, "b is float32[3], expected bfloat16[3]"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_mismatches_name_the_array(tmp_path, case):
  like, message = MISMATCHES[case]
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"ema": {"a": jnp.zeros(2), "b": jnp.zeros(3)}})
  with pytest.raises(UserError, match=f"1 arrays of .*/1/ema do not match: {re.escape(message)}; was it"):
    Checkpoints(tmp_path, read_only=True).restore(1, {"ema": like})


def test_what_is_not_there(tmp_path, capsys):
  assert Checkpoints(tmp_path / "absent", read_only=True).latest() is None
  save_all(tmp_path, 2)
  reader = Checkpoints(tmp_path, read_only=True)
  with pytest.raises(UserError, match=r"no committed step 3; it has 2$"):
    reader.restore(3, {"ema": jnp.zeros(3)})
  with pytest.raises(UserError, match=r"2 has no codec; it has ema, state$"):
    reader.restore(2, {"codec": jnp.zeros(3)})
  (tmp_path / "2" / "state" / "_METADATA").unlink()
  assert (
    reader.latest() is None and "_METADATA is missing; no older step is left\n" in capsys.readouterr().err
  )


def test_refused_saves(tmp_path):
  save_all(tmp_path, 2)
  with Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      with pytest.raises(ValueError, match=f"step {step} does not follow step 2"):
        checkpoints.save(step, {"state": make_state(step)})
    with pytest.raises(TypeError, match="PRNGKey"):
      checkpoints.save(3, {"state": jax.random.key(0)})
    with pytest.raises(ValueError, match="one name"):
      checkpoints.save(3, {"state": {"a": {"b": jnp.zeros(1)}, "a/b": jnp.ones(1)}})
    checkpoints.save(3, {"state": make_state(3)})  # is not in the way of one that is right


REFUSED = """
import contextlib, pathlib, sys
import jax.numpy as jnp
from jldm.storage.checkpoint import Checkpoints
for part in "abc":
  with contextlib.suppress(ValueError), Checkpoints(pathlib.Path(sys.argv[1], part)) as checkpoints:
    checkpoints.save(1, {"state": jnp.zeros((0, 2))})  # Orbax stores no array of zero size
"""


def test_refused_save_does_not_hang(tmp_path):
  assert (
    subprocess.run([sys.executable, "-c", REFUSED, tmp_path], env=ENVIRONMENT, timeout=90).returncode == 0
  )


def test_failed_save_is_raised(tmp_path, monkeypatch):
  save_all(tmp_path, 1)
  with Checkpoints(tmp_path) as checkpoints, monkeypatch.context() as patch:
    patch.setattr(checkpoint, "_fingerprints", lambda folder: (folder / "absent").read_bytes())
    checkpoints.save(2, {"state": make_state(2)})
    with pytest.raises(
      UserError, match=r"step 2 could not be saved: No such file or directory; step 1 is the newest in "
    ):
      checkpoints.commit(wait=True)
    patch.undo()
    assert checkpoints.latest() == 1
    checkpoints.save(3, {"state": make_state(3)})
  with Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == [1, 3] and not (tmp_path / "2").exists()


def test_interrupt_loses_no_save(tmp_path, monkeypatch):
  def interrupt(waited):
    monkeypatch.undo()
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt), Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {"state": make_state(1)})
    monkeypatch.setattr(checkpoint.futures, "wait", interrupt)
    checkpoints.commit(wait=True)
  assert Checkpoints(tmp_path, read_only=True).latest() == 1


def test_quiet_about_itself_only(tmp_path, caplog):
  with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, "absl"):
    save_all(tmp_path, 1, 2)
    Checkpoints(tmp_path, read_only=True).restore(2, {"state": make_state(2)})
    logging.getLogger("absl").info("the user's own")
  messages = [
    record.message for record in caplog.records if record.name == "absl" and record.levelno < logging.WARNING
  ]
  assert messages == ["the user's own"]


def test_readable_by_orbax_alone(tmp_path):
  save_all(tmp_path, 1, 2)
  with ocp.CheckpointManager(tmp_path) as manager:
    assert manager.all_steps() == [1, 2]
    restored = manager.restore(2, args=ocp.args.Composite(ema=ocp.args.PyTreeRestore()))["ema"]
  assert set(restored) == {"Dense_0/bias", "Dense_0/kernel", "low/0"}
  assert_same(restored["Dense_0/kernel"], make_state(2).params["Dense_0"]["kernel"])
