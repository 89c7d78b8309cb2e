"""An experiment as JSON: an object is {"class": name, **fields}, with a name of the registry's closed table.

Nothing that is read is ever executed or imported.
"""

import dataclasses
import json
from typing import Any, NamedTuple

from jldm.config.experiment import Experiment
from jldm.config.fields import check_fields
from jldm.config.registry import CLASSES, EXECUTION_FIELDS, field_names, unknown_class_message
from jldm.core.errors import UserError

HERE = "{workdir}"  # in a path of experiment.json: the folder that it is in


def to_data(value: Any) -> Any:
  """Converts an experiment, or a part of one, to JSON data.

  Raises:
    UserError: a class that is not registered, or a value that is not data.
  """
  if dataclasses.is_dataclass(value):
    name = type(value).__name__
    if CLASSES.get(name) is not type(value):
      raise UserError(f"class {name!r} is not known; decorate it with @jldm.register")
    fields = {
      field: to_data(getattr(value, field)) for field in field_names(value) if is_written(value, field)
    }
    return {"class": name} | fields
  if isinstance(value, (tuple, list)):
    return [to_data(item) for item in value]
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  raise UserError(
    f"{value!r} is not data; an experiment holds dataclasses, tuples, numbers, strings and None"
  )


def is_written(config: Any, name: str) -> bool:
  """Whether a field is written: all are, except a function that is the default of its class."""
  default = next(field.default for field in dataclasses.fields(config) if field.name == name)
  value = getattr(config, name)
  return dataclasses.is_dataclass(value) or not callable(value) or value is not default


def from_data(data: Any) -> Any:
  """Reads what `to_data` made.

  Raises:
    UserError: a class that is not in the table, fields that it does not have, or a value of another
      type or role than its field.
  """
  if isinstance(data, list):
    return tuple(from_data(item) for item in data)
  if not isinstance(data, dict):
    return data
  name = data.get("class")
  if not isinstance(name, str) or name not in CLASSES:
    raise UserError(unknown_class_message(name))
  fields = {field: from_data(value) for field, value in data.items() if field != "class"}
  check_fields(CLASSES[name], fields)
  try:
    return CLASSES[name](**fields)
  except UserError:
    raise
  # Values that the class does not take.
  except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
    reason = " ".join(str(error).split())
    raise UserError(f"{name} of the experiment does not fit this version of jldm: {reason}") from error


def dumps(experiment: Experiment, workdir: str = "") -> str:
  """The text of experiment.json; paths of what the workdir itself holds move with it."""
  data = to_data(experiment)
  return json.dumps(with_paths(data, workdir, HERE) if workdir else data, indent=2) + "\n"


def loads(text: str | bytes, workdir: str = "") -> Experiment:
  """Reads what `dumps` wrote into a workdir that is there now.

  Raises:
    UserError: not JSON, or not an experiment.
  """
  try:
    data = json.loads(text)
    if not isinstance(data, dict) or data.get("class") != "Experiment":
      raise UserError("not an experiment: its class is not 'Experiment'")
    return from_data(with_paths(data, HERE, workdir) if workdir else data)
  except UserError:
    raise
  except (ValueError, RecursionError) as error:
    raise UserError(f"not an experiment: {error}") from error


def with_paths(data: Any, old: str, new: str) -> Any:
  """An experiment as data, every path below the folder `old` below `new` instead."""
  if isinstance(data, dict):
    return {name: with_paths(value, old, new) for name, value in data.items()}
  if isinstance(data, list):
    return [with_paths(value, old, new) for value in data]
  is_below = isinstance(data, str) and data.startswith(f"{old}/")
  return f"{new}{data.removeprefix(old)}" if is_below else data


def without_execution_fields(data: Any) -> Any:
  """An experiment as data without EXECUTION_FIELDS: equal if two experiments compute the same values."""
  if isinstance(data, dict):
    return {
      name: without_execution_fields(value) for name, value in data.items() if name not in EXECUTION_FIELDS
    }
  return [without_execution_fields(value) for value in data] if isinstance(data, list) else data


class Change(NamedTuple):
  """A field of two experiments as data that differs, under a path such as "denoiser.steps"."""

  path: str
  old: Any
  new: Any

  def __str__(self) -> str:
    return f"{self.path}: {self.old!r} -> {self.new!r}"


def differences(old: Any, new: Any, path: str = "") -> list[str]:
  """The differences of two experiments as data, such as "denoiser.steps: 1000 -> 2000", in field order."""
  return [str(change) for change in changed_fields(old, new, path)]


def changed_fields(old: Any, new: Any, path: str = "") -> list[Change]:
  """The fields of two experiments as data that differ, in field order.

  EXECUTION_FIELDS are not compared.
  """
  old, new = (with_stage_names(without_execution_fields(data)) for data in (old, new))
  if isinstance(old, dict) and isinstance(new, dict):
    names = list(old) + [name for name in new if name not in old]
    # A stage that only one of them has appears in the names of "stages" and is not compared.
    if old.get("stages") != new.get("stages"):
      names = [name for name in names if name in old and name in new]
    inner = lambda name: f"{path}.{name}" if path else name
    return [change for name in names for change in changed_fields(old.get(name), new.get(name), inner(name))]
  return [] if old == new and type(old) is type(new) else [Change(path, old, new)]


def with_stage_names(data: Any) -> Any:
  """An experiment as data with `stages` replaced by their names, and each stage under its name."""
  if not isinstance(data, dict) or data.get("class") != "Experiment":
    return data
  stages, names = {stage["name"]: stage for stage in data["stages"]}, list(data)
  at = names.index("stages")
  before, after = ({name: data[name] for name in part} for part in (names[:at], names[at + 1 :]))
  return before | {"stages": list(stages)} | stages | after
