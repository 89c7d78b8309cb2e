"""Asynchronous checkpoints with checksums: `<folder>/<step>/` (Orbax) and `<folder>/<step>.manifest.json`.

The manifest, {"step": n, "files": {path: [size, blake2b]}}, is written last and removed first.  So a
step without a manifest is uncommitted, whenever the process was killed.  Orbax alone would restore
a flipped byte silently.

An item is stored as a flat mapping from names such as `params/Dense_0/kernel`.  `restore` takes a
tree, which gives the types (NamedTuple, dataclass) and the empty containers.  Arrays that this
process holds whole are saved as numpy, which Orbax writes and reads in half the time of jax arrays;
arrays that are split over processes are saved as jax arrays.

Orbax's CheckpointManager deletes old steps when the new one is renamed into place, before its
manifest exists: with one step kept, a kill could leave none.  So this module uses a checkpointer
alone, and deletes old steps after it has committed a new one.
"""

from collections.abc import Iterator
from concurrent import futures
import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
import re
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jldm.core.errors import RESUME_HINT, NonFiniteError, Preempted, UserError
from jldm.core.files import replace_file
from jldm.core.trees import named_leaves
from jldm.distributed import multihost

PyTree = Any
MANIFEST = ".manifest.json"
OURS = re.compile(
  r"(0|[1-9]\d*)(|\.manifest\.json|\.manifest\.json\.tmp|\.orbax-checkpoint-tmp.*)"
)  # (step)(kind)
# Of Orbax, which measures it by the clock of the wall: a clock that is set by half an hour is no failed save.
PATIENCE_S = 30 * 24 * 3600
OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # in the messages of TensorStore, which writes Orbax's arrays


def _is_worth_logging(record: logging.LogRecord) -> bool:
  """False for Orbax's information, dozens of lines per save, and for errors, which it raises as well."""
  return f"{os.sep}orbax{os.sep}" not in record.pathname or (
    record.levelno >= logging.WARNING and not record.exc_info
  )


def _not_disk_error(record: logging.LogRecord) -> bool:
  """False for the further errors of Orbax's tasks on a full disk: the first one is raised."""
  return not (record.exc_info and OS_ERROR.search(str(record.exc_info[1])))


logging.getLogger("absl").addFilter(_is_worth_logging)
logging.getLogger("asyncio").addFilter(_not_disk_error)


class Checkpoints(contextlib.AbstractContextManager):
  """The checkpoints in one folder; leaving the context commits the last save.

  Opened for writing (by one training at a time), it removes uncommitted files of a killed run.  With
  `read_only` it changes nothing, so a training may continue at the same time.
  """

  def __init__(self, folder: Path, keep: int = 2, read_only: bool = False, keep_every: int = 0):
    """keep: how many of the last committed steps stay, at least 1; so do multiples of `keep_every`."""
    if keep < 1:
      raise ValueError(f"keep={keep}; expected at least 1")
    self.folder, self.keep, self.read_only = Path(folder).absolute(), keep, read_only
    self.keep_every = keep_every
    self._verified: set[int] = set()
    self._pending: tuple[int, futures.Future] | None = None
    if not read_only:
      # With directories made in the background, a save that fails leaves a thread that waits for minutes.
      options = ocp.options.AsyncOptions(create_directories_asynchronously=False, timeout_secs=PATIENCE_S)
      # Barriers go by name: two folders that are saved at the same time need different names.
      meeting = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix="-".join(self.folder.parts[-2:]))
      composite = ocp.CompositeOptions(async_options=options, multiprocessing_options=meeting)
      handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
      # Compression takes a quarter of the time of a save and makes weights hardly smaller.
      handlers.add(
        None,
        ocp.args.PyTreeSave,
        ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=meeting),
      )
      handler = ocp.CompositeCheckpointHandler(composite_options=composite, handler_registry=handlers)
      self._checkpointer = ocp.AsyncCheckpointer(
        handler, async_options=options, multiprocessing_options=meeting
      )
      self._worker = futures.ThreadPoolExecutor(1, "checkpoint")
      if multihost.is_primary():
        self.folder.mkdir(parents=True, exist_ok=True)
        _remove_uncommitted(self.folder, self.steps())

  def __exit__(self, kind: type | None, *exception: object) -> None:
    if multihost.is_multiprocess() and kind not in (None, NonFiniteError, Preempted):
      return  # the other processes do not know of this error and would not join in a commit
    try:
      self.commit(wait=True)
    finally:
      if not self.read_only:
        self._checkpointer.close()
        self._worker.shutdown()

  def save(self, step: int, items: dict[str, PyTree]) -> None:
    """Commits the previous save, then starts to save trees of arrays; they may be donated once this returns.

    Raises:
      ValueError: `step` does not follow the newest one.
      UserError: this save or the previous one failed.
    """
    if self.read_only:
      raise ValueError(f"{self.folder} is open for reading only")
    self.commit(wait=True)
    if (steps := self.steps()) and step <= steps[-1]:
      raise ValueError(f"step {step} does not follow step {steps[-1]}, the newest in {self.folder}")
    args = {
      item: ocp.args.PyTreeSave(_on_host(tree)) for item, tree in items.items() if jax.tree.leaves(tree)
    }
    with self._disk_errors_in_one_line(step):
      self._checkpointer.save(self.folder / str(step), args=ocp.args.Composite(**args))

    def finish() -> dict[str, list]:
      self._checkpointer.wait_until_finished()
      return _fingerprints(self.folder / str(step)) if multihost.is_primary() else {}

    self._pending = step, self._worker.submit(finish)

  def commit(self, wait: bool = False) -> None:
    """Commits the pending save if it is finished, or after waiting for it, and removes old steps.

    Raises:
      UserError: the save failed.
    """
    if self._pending is None or not (wait or self._pending[1].done()):
      return
    step, finished = self._pending
    futures.wait([finished])  # after an interrupt here the save is still pending, and __exit__ commits it
    self._pending = None
    with self._disk_errors_in_one_line(step):
      files = finished.result()
      if multihost.is_primary():
        _write(
          self.folder / f"{step}{MANIFEST}", json.dumps({"step": step, "files": files}, separators=(",", ":"))
        )
    if multihost.is_primary():
      for old in self.steps()[: -self.keep]:
        if self.keep_every and old % self.keep_every == 0:
          continue
        (self.folder / f"{old}{MANIFEST}").unlink()
        self._worker.submit(
          shutil.rmtree, self.folder / str(old)
        )  # in the background: it takes tenths of a second
    self._verified.add(step)

  @contextlib.contextmanager
  def _disk_errors_in_one_line(self, step: int) -> Iterator[None]:
    """Raises a UserError in place of an error of the disk; any other error stays as it is."""
    try:
      yield
    except Exception as error:
      code = error.errno if isinstance(error, OSError) else next(map(int, OS_ERROR.findall(str(error))), None)
      if code is None:
        raise
      steps = self.steps()
      there = (
        f"step {steps[-1]} is the newest in {self.folder}" if steps else f"{self.folder} has no step yet"
      )
      raise UserError(
        f"step {step} could not be saved: {os.strerror(code)}; {there}, and {RESUME_HINT}"
      ) from error

  def steps(self) -> list[int]:
    """The committed steps, ascending."""
    names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
    matches = [OURS.fullmatch(name) for name in names]
    return sorted(
      int(match[1]) for match in matches if match and not match[2] and match[1] + MANIFEST in names
    )

  def latest(self) -> int | None:
    """The newest committed step that matches its manifest; damaged ones are reported and set aside."""
    step = self._newest_sound() if multihost.is_primary() else None
    # Only the primary looks, so that all processes continue from the same step.
    newest = multihost.broadcast(-1 if step is None else step)
    step = None if newest < 0 else newest
    self._verified |= {step} - {None}
    return step

  def _newest_sound(self) -> int | None:
    damaged, sound = {}, None
    for step in reversed(self.steps()):
      if (fault := _fault(self.folder, step)) is None:
        sound = step
        break
      if (self.folder / f"{step}{MANIFEST}").exists():  # else the training has just removed this old step
        damaged[step] = fault
    instead = "no older step is left" if sound is None else f"using step {sound} instead"
    for step, fault in damaged.items():
      aside = "" if self.read_only else f" (moved to {_set_aside(self.folder, step)})"
      print(
        f"checkpoint {self.folder / str(step)} is damaged: {fault}; {instead}{aside}",
        file=sys.stderr,
        flush=True,
      )
    return sound

  def items(self, step: int) -> list[str]:
    """The names of the items of a committed step; an item without arrays is not stored.

    Raises:
      UserError: there is no such step, or it is damaged.
    """
    # A network share may lag in its listing of a step that all processes have verified.
    verified = multihost.is_multiprocess() and step in self._verified
    if not verified and step not in (steps := self.steps()):
      raise UserError(
        f"{self.folder} has no committed step {step}; it has {', '.join(map(str, steps)) or 'none'}"
      )
    if step not in self._verified and (fault := _fault(self.folder, step)):
      raise UserError(
        f"checkpoint {self.folder / str(step)} is damaged: {fault}; the committed steps are {steps}"
      )
    self._verified.add(step)
    return sorted(path.name for path in (self.folder / str(step)).iterdir() if path.is_dir())

  def restore(self, step: int, like: dict[str, PyTree]) -> dict[str, PyTree]:
    """The items that `like` names, bit for bit, in its tree types and shardings.

    like: trees of jax.ShapeDtypeStruct or arrays; without a sharding an array is put on the default device.

    Raises:
      UserError: the step or an item is missing or damaged, or names, shapes or dtypes differ from `like`.
    """
    stored = self.items(step)
    if absent := [item for item, tree in like.items() if item not in stored and jax.tree.leaves(tree)]:
      raise UserError(
        f"{self.folder / str(step)} has no {', '.join(absent)}; it has {', '.join(stored) or 'nothing'}"
      )
    return {item: _restore(self.folder / str(step) / item, tree) for item, tree in like.items()}


def _write(path: Path, text: str) -> None:
  """Writes a file atomically."""
  with replace_file(path, partial=f"{path.name}.tmp", fsync=True) as file:
    file.write(text.encode())


def _remove_uncommitted(folder: Path, committed: list[int]) -> None:
  """Removes what a killed run left: steps without manifests, manifests without steps, temporary files."""
  for path in list(folder.iterdir()):
    match = OURS.fullmatch(path.name)
    if match and not (match[2] in ("", MANIFEST) and int(match[1]) in committed):
      shutil.rmtree(path) if path.is_dir() else path.unlink()


def _set_aside(folder: Path, step: int) -> Path:
  """Moves a step and its manifest to `damaged/`, where it replaces an earlier one of the same number."""
  aside = folder / "damaged" / str(step)
  aside.parent.mkdir(exist_ok=True)
  shutil.rmtree(aside, ignore_errors=True)
  os.replace(folder / f"{step}{MANIFEST}", aside.parent / f"{step}{MANIFEST}")
  os.replace(folder / str(step), aside)
  return aside


def _fingerprints(folder: Path) -> dict[str, list]:
  """{relative path: [size, blake2b]} of all files in a folder; [] for a pipe or a device, never read."""

  def fingerprint(path: Path) -> list:
    if not path.is_file():
      return []
    with path.open("rb") as file:
      return [path.stat().st_size, hashlib.file_digest(file, "blake2b").hexdigest()]

  paths = sorted(path for path in folder.rglob("*") if not path.is_dir())
  with futures.ThreadPoolExecutor(4) as pool:
    return dict(zip([path.relative_to(folder).as_posix() for path in paths], pool.map(fingerprint, paths)))


def _fault(folder: Path, step: int) -> str | None:
  """The first file of a committed step that does not match its manifest, and how; None if all match."""
  path = folder / f"{step}{MANIFEST}"
  try:
    if path.exists() and not path.is_file():
      return "its manifest is no file"
    manifest = json.loads(path.read_bytes())
    actual = _fingerprints(folder / str(step))
    for name, stated in manifest["files"].items():
      if not actual.get(name) or actual[name] != stated:
        return f"{name} has changed" if actual.get(name) else f"{name} is missing"
    # What the manifest does not name is unchecked; a file browser or NFS adds hidden files.
    for name in actual.keys() - manifest["files"].keys():
      if not Path(name).name.startswith("."):
        return f"{name} is not in its manifest"
    return None if manifest["step"] == step else "its manifest is of another step"
  except OSError as error:
    return f"{error.filename} cannot be read ({error.strerror})"
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
    return "its manifest cannot be read"


def _by_name(tree: PyTree) -> dict[str, Any]:
  """Leaves by their path, as in `opt_state/0/mu/kernel`; the name of a single leaf is `value`."""
  return {name or "value": leaf for name, leaf in named_leaves(tree).items()}


def _on_host(tree: PyTree) -> dict[str, Any]:
  """Arrays by name; those that this process holds whole as numpy, which Orbax copies at once."""
  arrays = {
    name: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for name, leaf in _by_name(tree).items()
  }
  whole = jax.device_get({name: array for name, array in arrays.items() if array.is_fully_addressable})
  # Raises a TypeError for typed keys.
  return arrays | {name: np.asarray(array) for name, array in whole.items()}


@contextlib.contextmanager
def _damage_in_one_line(path: Path) -> Iterator[None]:
  """Raises a UserError in place of whatever Orbax and TensorStore raise for files that they cannot read."""
  try:
    yield
  except MemoryError:
    raise
  except Exception as error:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    raise UserError(
      f"checkpoint {path} cannot be read: {reason}; remove {path.parent} and its manifest"
    ) from error


def _restore(path: Path, like: PyTree) -> PyTree:
  """One item in the types and shardings of `like`; UserError for arrays that do not match."""
  leaves, handler = _by_name(like), ocp.PyTreeCheckpointHandler()
  if not leaves:
    return like
  kinds = lambda tree: {name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in tree.items()}
  with _damage_in_one_line(path):
    stored = kinds(handler.metadata(path).tree)
  wanted = kinds(leaves)
  if different := [name for name in wanted | stored if wanted.get(name) != stored.get(name)]:
    listed = [
      f"{name} is {stored.get(name, 'not stored')}, expected {wanted.get(name, 'none')}"
      for name in different[:3]
    ]
    raise UserError(
      f"{len(different)} arrays of {path} do not match: {'; '.join(listed)}; was it saved by this experiment?"
    )
  # An array that is restored without a sharding is uncommitted: it may move to any device.
  place = lambda leaf: getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
  places = {name: place(leaf) for name, leaf in leaves.items()}
  args = {
    name: ocp.RestoreArgs(restore_type=np.ndarray)
    if at is None or at.is_fully_addressable
    else ocp.ArrayRestoreArgs(sharding=at)
    for name, at in places.items()
  }
  with _damage_in_one_line(path):
    values = handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=args))
  return jax.tree.unflatten(
    jax.tree.structure(like), [jax.device_put(values[name], at) for name, at in places.items()]
  )
