"""Folders that appear whole or not at all."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import shutil


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
  """A temporary sibling that becomes `folder` when the block ends, or vanishes if it raises.

  Raises: OSError if `folder` exists or cannot be made.
  What a killed run left behind is removed by the next one, so a folder may have one writer at a time.
  """
  temporary = folder.with_name(f".{folder.name}.partial")
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  try:
    yield temporary
    os.rename(temporary, folder)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
