"""Reads what a run and its evaluations wrote, and checks every value that a report shows.

A file of a workdir may have been cut, edited or replaced.  So nothing of another type, and no number that
cannot be drawn, goes further than this module.
"""

from collections.abc import Iterator
import json
import math
from pathlib import Path
import struct
from typing import Any

from jldm.core.errors import UserError
from jldm.evaluation.judge import Record
from jldm.storage import workdir as workdirs
from jldm.train.logging import read_rows

LARGEST = 1e38  # about the largest float32
MOST_BYTES = 2**26  # of an evaluation
STEPS = range(2**53)
PNG = b"\x89PNG\r\n\x1a\n"

# A schema is a type, a function that tells what is legal, or a dict of schemas, in which the names that
# end in "?" may be missing, and the name "*" stands for all others.


def is_number(value: Any) -> bool:
  """Whether it is a finite number that can be drawn; a bool is none."""
  return type(value) in (int, float) and abs(value) < LARGEST and math.isfinite(value)


def is_step(value: Any) -> bool:
  return type(value) is int and value in STEPS


INTERVAL = {"value": is_number, "low": is_number, "high": is_number}
SCORE = INTERVAL | {"n": is_step}
PICTURES = {"split": str, "n": is_step}
SAMPLING = {"n": is_step, "seed": is_step, "sampler": str, "steps": is_step, "grid": str}
GUIDANCE = ({"guidance_scale": is_number}, {"guidance": str})  # one of them
EVALUATION = {
  "stage": str,
  "step": is_step,
  "metrics": {"*": SCORE | {"real?": INTERVAL}},
  "extractor": {"name": str, "version": str, "preprocessing": str, "weights": str, "distance?": str},
  "reference": PICTURES,
  "real": PICTURES,
  "versions": {"*": str},
  "samples?": lambda value: any(has_schema(value, SAMPLING | rule) for rule in GUIDANCE),
  "classes?": {"*": {"*": SCORE}},
  "left_out?": {"*": str},
  "memorisation?": {"flagged": bool, "nearer": is_number, "copies": is_number},
}


def has_schema(value: Any, schema: Any) -> bool:
  if isinstance(schema, type):
    return type(value) is schema
  return has_fields(value, schema) if isinstance(schema, dict) else schema(value)


def has_fields(value: Any, schema: dict[str, Any]) -> bool:
  """Whether a value is a JSON object with the fields of a schema, and perhaps more."""
  if not isinstance(value, dict):
    return False
  each = schema.get("*")
  stated = {name.rstrip("?"): (name.endswith("?"), of) for name, of in schema.items() if name != "*"}
  named = all(
    has_schema(value[name], of) if name in value else optional for name, (optional, of) in stated.items()
  )
  return named and (each is None or all(has_schema(value[name], each) for name in value.keys() - stated))


def read_metrics(path: Path) -> Iterator[dict]:
  """The rows of metrics.jsonl with their numbers; lines that are none, and other values, are skipped."""
  for _, row in read_rows(path):
    if is_step(row["step"]):
      yield {name: value for name, value in row.items() if name == "stage" or is_number(value)}


def read_evaluations(workdir: Path) -> list[Record]:
  """The records that `jldm evaluate` or the training wrote, in the order of steps.

  Raises:
    UserError: a JSON file that is no evaluation.
  """
  records = []
  for path in sorted(workdirs.evaluation_folder(workdir).glob("*.json")):
    try:
      if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise ValueError("no file of a legal size")
      record = json.loads(path.read_bytes())
      if not has_schema(record, EVALUATION):
        raise ValueError("another type")
    except (OSError, ValueError, RecursionError) as error:
      raise UserError(
        f"{str(path)!r} is no evaluation; remove it, or write it again with jldm evaluate"
      ) from error
    records.append(record | {"file": path.stem})
  return sorted(records, key=lambda record: (record["stage"], record["step"]))


def read_sheet(path: Path) -> bytes:
  """The bytes of a PNG.

  Raises:
    UserError: it is no PNG.
  """
  try:
    data = path.read_bytes() if path.is_file() else b""
  except OSError as error:
    raise UserError(f"{str(path)!r} cannot be read ({error.strerror}); remove it") from error
  if not data.startswith(PNG) or len(data) < 24 or not all(struct.unpack(">II", data[16:24])):
    raise UserError(f"{str(path)!r} is no PNG; remove it")
  return data
