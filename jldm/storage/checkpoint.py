"""Asynchronous checkpoints with every byte accounted for: `<folder>/<step>/` (Orbax),
`<folder>/<step>.manifest.json`.

The manifest, {"step": n, "files": {path: [size, blake2b]}}, is written when the step is whole on
disk, removed first: a step without one is uncommitted, whenever a kill came.  Orbax alone restores
a flipped byte silently.

An item is stored as one flat mapping of names such as `params/Dense_0/kernel`: types (NamedTuple,
dataclass) and empty containers come back from the tree that `restore` is given.  Arrays that this
process holds whole travel as numpy, which Orbax writes and reads in half the time of jax arrays;
those spread over several processes travel as jax arrays.

Orbax's CheckpointManager deletes old steps once the new one is renamed into place, before it can
have a manifest: with one step kept, a kill could leave none.  So a bare checkpointer saves, and old
steps go after the commit of a new one.
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
from jldm.distributed import multihost

PyTree = Any
MANIFEST = ".manifest.json"
OURS = re.compile(
  r"(0|[1-9]\d*)(|\.manifest\.json|\.manifest\.json\.tmp|\.orbax-checkpoint-tmp.*)"
)  # (step)(kind)
OS_ERROR = re.compile(r"os_error_code='(\d+)'")  # how TensorStore, which writes Orbax's arrays, tells of one


def _loud(record: logging.LogRecord) -> bool:
  """False for what Orbax says below a warning, dozens of lines a save, and of errors, each of which it
  raises as well.
  """
  return f"{os.sep}orbax{os.sep}" not in record.pathname or (
    record.levelno >= logging.WARNING and not record.exc_info
  )


def _untold(record: logging.LogRecord) -> bool:
  """False for what a task of Orbax met on a full disk after the first, which is raised."""
  return not (record.exc_info and OS_ERROR.search(str(record.exc_info[1])))


logging.getLogger("absl").addFilter(_loud)
logging.getLogger("asyncio").addFilter(_untold)


class Checkpoints(contextlib.AbstractContextManager):
  """The steps in one folder; a context manager, left with the last save committed.

  Opened for writing (by one training at a time) it removes what a kill left uncommitted.  With
  `read_only` it changes nothing, so that a training may go on meanwhile.
  """

  def __init__(self, folder: Path, keep: int = 2, read_only: bool = False):
    """keep: committed steps left on disk, at least 1."""
    if keep < 1:
      raise ValueError(f"keep={keep}; expected at least 1")
    self.folder, self.keep, self.read_only = Path(folder).absolute(), keep, read_only
    self._verified: set[int] = set()
    self._pending: tuple[int, futures.Future] | None = None
    if not read_only:
      # Where directories are made in the background, a save that is refused leaves a thread that waits for minutes.
      options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
      # Processes meet by name: two folders that are saved to at once must not have one.
      meeting = ocp.options.MultiprocessingOptions(barrier_sync_key_prefix="-".join(self.folder.parts[-2:]))
      composite = ocp.CompositeOptions(async_options=options, multiprocessing_options=meeting)
      handlers = ocp.handlers.DefaultCheckpointHandlerRegistry()
      # Weights hardly get smaller by compression, which is a quarter of the work of a save.
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
      return  # what the others do not know of: they will not come to finish a save
    try:
      self.commit(wait=True)
    finally:
      if not self.read_only:
        self._checkpointer.close()
        self._worker.shutdown()

  def save(self, step: int, items: dict[str, PyTree]) -> None:
    """Commits the save before and starts to save trees of arrays, which may be donated as soon as this returns.

    Raises ValueError where `step` does not follow the newest one, and UserError where this or the
    save before failed.
    """
    if self.read_only:
      raise ValueError(f"{self.folder} is open for reading only")
    self.commit(wait=True)
    if (steps := self.steps()) and step <= steps[-1]:
      raise ValueError(f"step {step} does not follow step {steps[-1]}, the newest in {self.folder}")
    args = {
      item: ocp.args.PyTreeSave(_on_host(tree)) for item, tree in items.items() if jax.tree.leaves(tree)
    }
    with self._told(step):
      self._checkpointer.save(self.folder / str(step), args=ocp.args.Composite(**args))

    def finish() -> dict[str, list]:
      self._checkpointer.wait_until_finished()
      return _fingerprints(self.folder / str(step)) if multihost.is_primary() else {}

    self._pending = step, self._worker.submit(finish)

  def commit(self, wait: bool = False) -> None:
    """Commits the save in flight if it has ended (`wait`: when it has), removes old steps; UserError
    where it failed.
    """
    if self._pending is None or not (wait or self._pending[1].done()):
      return
    step, finished = self._pending
    futures.wait([finished])  # an interrupt here leaves the save pending, to be committed on the way out
    self._pending = None
    with self._told(step):
      files = finished.result()
      if multihost.is_primary():
        _write(
          self.folder / f"{step}{MANIFEST}", json.dumps({"step": step, "files": files}, separators=(",", ":"))
        )
    if multihost.is_primary():
      for old in self.steps()[: -self.keep]:
        (self.folder / f"{old}{MANIFEST}").unlink()
        self._worker.submit(shutil.rmtree, self.folder / str(old))  # takes tenths of a second
    self._verified.add(step)

  @contextlib.contextmanager
  def _told(self, step: int) -> Iterator[None]:
    """Tells of a save that the disk refused in one line; a bug of ours stays one."""
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
    found = [OURS.fullmatch(name) for name in names]
    return sorted(int(match[1]) for match in found if match and not match[2] and match[1] + MANIFEST in names)

  def latest(self) -> int | None:
    """The newest committed step that agrees with its manifest; damaged ones are told of and moved into
    `damaged/`.
    """
    step = self._newest_sound() if multihost.is_primary() else None
    agreed = multihost.broadcast(
      -1 if step is None else step
    )  # one process looks, so that all go on from the same step
    step = None if agreed < 0 else agreed
    self._verified |= {step} - {None}
    return step

  def _newest_sound(self) -> int | None:
    damaged, sound = {}, None
    for step in reversed(self.steps()):
      if (fault := _fault(self.folder, step)) is None:
        sound = step
        break
      if (self.folder / f"{step}{MANIFEST}").exists():  # else a training has just removed this old step
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
    """The names of what a committed step stores (an item without arrays is not stored); raises
    UserError if damaged.
    """
    agreed = multihost.is_multiprocess() and step in self._verified  # whatever a share that lags lists here
    if not agreed and step not in (steps := self.steps()):
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
    """The items that `like` names, bit for bit, in its tree types and shardings (default: the default device).

    like: trees of jax.ShapeDtypeStruct or arrays.  Raises UserError where the step or an item is
    not there or damaged, and where names, shapes or dtypes are not those of `like`.
    """
    stored = self.items(step)
    if absent := [item for item, tree in like.items() if item not in stored and jax.tree.leaves(tree)]:
      raise UserError(
        f"{self.folder / str(step)} has no {', '.join(absent)}; it has {', '.join(stored) or 'nothing'}"
      )
    return {item: _restore(self.folder / str(step) / item, tree) for item, tree in like.items()}


def _write(path: Path, text: str) -> None:
  """All of the file or nothing, whenever a kill comes."""
  with replace_file(path, partial=f"{path.name}.tmp", fsync=True) as file:
    file.write(text.encode())


def _remove_uncommitted(folder: Path, committed: list[int]) -> None:
  """Removes what a kill left: partial and unmarked steps, manifests without a step, drafts; nothing else."""
  for path in list(folder.iterdir()):
    match = OURS.fullmatch(path.name)
    if match and not (match[2] in ("", MANIFEST) and int(match[1]) in committed):
      shutil.rmtree(path) if path.is_dir() else path.unlink()


def _set_aside(folder: Path, step: int) -> Path:
  """Moves a step and its manifest into `damaged/`, in place of an earlier one of the same number."""
  aside = folder / "damaged" / str(step)
  aside.parent.mkdir(exist_ok=True)
  shutil.rmtree(aside, ignore_errors=True)
  os.replace(folder / f"{step}{MANIFEST}", aside.parent / f"{step}{MANIFEST}")
  os.replace(folder / str(step), aside)
  return aside


def _fingerprints(folder: Path) -> dict[str, list]:
  """{relative path: [size, blake2b]} of all files in a folder."""

  def fingerprint(path: Path) -> list:
    with path.open("rb") as file:
      return [path.stat().st_size, hashlib.file_digest(file, "blake2b").hexdigest()]

  paths = sorted(path for path in folder.rglob("*") if path.is_file())
  with futures.ThreadPoolExecutor(4) as pool:
    return dict(zip([path.relative_to(folder).as_posix() for path in paths], pool.map(fingerprint, paths)))


def _fault(folder: Path, step: int) -> str | None:
  """Which file of a committed step disagrees with its manifest, and how."""
  try:
    manifest = json.loads((folder / f"{step}{MANIFEST}").read_bytes())
    found = _fingerprints(folder / str(step))
    for name, stated in manifest["files"].items():
      if found.get(name) != stated:
        return f"{name} has changed" if name in found else f"{name} is missing"
    return None if manifest["step"] == step else "its manifest is of another step"
  except OSError as error:
    return f"{error.filename} cannot be read ({error.strerror})"
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
    return "its manifest cannot be read"


def _by_name(tree: PyTree) -> dict[str, Any]:
  """Leaves by their path, as in `opt_state/0/mu/kernel`; a tree that is a leaf is named `value`."""
  paths = jax.tree_util.tree_leaves_with_path(tree)
  named = {jax.tree_util.keystr(path, simple=True, separator="/") or "value": leaf for path, leaf in paths}
  if len(named) < len(paths):
    raise ValueError("two leaves of a tree have one name: is there a slash in a key?")
  return named


def _on_host(tree: PyTree) -> dict[str, Any]:
  """Arrays by name; those that this process holds whole as numpy, which Orbax copies before its `save` returns."""
  arrays = {
    name: leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf) for name, leaf in _by_name(tree).items()
  }
  whole = jax.device_get({name: array for name, array in arrays.items() if array.is_fully_addressable})
  return arrays | {
    name: np.asarray(array) for name, array in whole.items()
  }  # raises TypeError for typed keys


def _restore(path: Path, like: PyTree) -> PyTree:
  """One item in the types and shardings of `like`; raises UserError naming leaves that do not match."""
  leaves, handler = _by_name(like), ocp.PyTreeCheckpointHandler()
  if not leaves:
    return like
  kinds = lambda tree: {name: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}" for name, leaf in tree.items()}
  stored, wanted = kinds(handler.metadata(path).tree), kinds(leaves)
  if unlike := [name for name in wanted | stored if wanted.get(name) != stored.get(name)]:
    told = [
      f"{name} is {stored.get(name, 'not stored')}, expected {wanted.get(name, 'none')}"
      for name in unlike[:3]
    ]
    raise UserError(
      f"{len(unlike)} arrays of {path} do not match: {'; '.join(told)}; was it saved by this experiment?"
    )
  # Like an uncommitted array, what is restored at None may be moved to any device.
  place = lambda leaf: getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
  places = {name: place(leaf) for name, leaf in leaves.items()}
  args = {
    name: ocp.RestoreArgs(restore_type=np.ndarray)
    if at is None or at.is_fully_addressable
    else ocp.ArrayRestoreArgs(sharding=at)
    for name, at in places.items()
  }
  values = handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=args))
  return jax.tree.unflatten(
    jax.tree.structure(like), [jax.device_put(values[name], at) for name, at in places.items()]
  )
