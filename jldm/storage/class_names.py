"""The names of the classes that a run was trained on: classes.json in its workdir."""

from collections.abc import Sequence
import json
from pathlib import Path

from jldm.core.errors import UserError
from jldm.core.files import replace_file

NAME = "classes.json"
MOST_BYTES = 2**26


def write_class_names(workdir: Path, names: Sequence[str]) -> None:
  """Writes the names in the order of their labels; nothing if they are the labels themselves."""
  if list(names) != [str(label) for label in range(len(names))]:
    with replace_file(workdir / NAME) as file:
      file.write(json.dumps(list(names), indent=1).encode())


def read_class_names(workdir: Path) -> list[str]:
  """The names in the order of their labels; [] if the workdir has none.

  Raises:
    UserError: a file that is not a list of names.
  """
  path = workdir / NAME
  if not path.is_file():
    return []
  try:
    text = path.read_bytes() if path.stat().st_size <= MOST_BYTES else b""
    names = json.loads(text)
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{str(path)!r} cannot be read; delete it, and give labels as numbers") from error
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise UserError(f"{str(path)!r} is not a list of names; delete it, and give labels as numbers")
  return names
