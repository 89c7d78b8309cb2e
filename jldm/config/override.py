"""`--set PATH=VALUE`, and objects written as in Python.

Text is parsed and names are looked up in a closed table; nothing is executed.
"""

import ast
import dataclasses
import difflib
from typing import Any

from jldm.config.experiment import Experiment
from jldm.config.registry import CLASSES, ELEMENTS, field_names, role_of_class
from jldm.core.errors import UserError


def override(config: Any, path: str, text: str) -> Any:
  """`override(experiment, "denoiser.steps", "500")` is the experiment with one field replaced.

  A leaf keeps its exact type.  An object is replaced by another of its role, written as in Python:
  `override(experiment, "denoiser.objective.parametrization", "Predict('eps')")`.

  Raises:
    UserError: no such field (with the nearest one), or a value of another type.
  """
  return replace_field(config, path.split("."), text, path)


def replace_field(config: Any, names: list[str], text: str, path: str) -> Any:
  if not dataclasses.is_dataclass(config):
    raise UserError(f"{path}: {config!r} has no fields; set it whole")
  head, *rest = names
  if isinstance(config, Experiment) and head in config.names:
    return replace_stage(config, names, text, path)
  if head not in field_names(config):
    legal = field_names(config) + (list(config.names) if isinstance(config, Experiment) else [])
    raise UserError(f"{path}: {type(config).__name__} has no field {head!r}; {suggest_name(head, legal)}")
  old = getattr(config, head)
  new = replace_field(old, rest, text, path) if rest else parse_like(old, text, path)
  return dataclasses.replace(config, **{head: new})


def replace_stage(experiment: Experiment, names: list[str], text: str, path: str) -> Experiment:
  """Replaces a field of the stage called names[0], or the whole stage, which keeps its name."""
  head, *rest = names
  old = experiment.stage(head)
  new = replace_field(old, rest, text, path) if rest else parse_like(old, text, path)
  new = new if rest else dataclasses.replace(new, name=head)
  return dataclasses.replace(
    experiment, stages=tuple(new if stage is old else stage for stage in experiment.stages)
  )


def suggest_name(name: str, legal: list[str]) -> str:
  """A hint: the closest legal name, or all of them if none is close."""
  return closest_name(name, legal) or f"it has {', '.join(legal) or 'none'}"


def closest_name(name: str, legal: list[str]) -> str:
  near = difflib.get_close_matches(name, legal, 1)
  return f"did you mean {near[0]!r}?" if near else ""


def suggest_class(name: str, classes: dict[str, type]) -> str:
  """As `suggest_name`, for a class; one that is not part of jldm needs --import."""
  if classes is not CLASSES:
    return suggest_name(name, sorted(classes))
  hint = "a class of your own needs --import FILE.py, where it is decorated with @jldm.register"
  return "; ".join(filter(None, [closest_name(name, sorted(classes)), hint]))


def parse_like(old: Any, text: str, path: str) -> Any:
  """`text` as a value of the type of `old`, or as an object of its role; an int is a legal float."""
  if isinstance(old, str):
    return text
  name = path.rpartition(".")[2]
  try:
    new = float(text) if isinstance(old, float) else build_value(parse_expression(text), path, CLASSES)
  except (ValueError, SyntaxError) as error:
    if isinstance(error, UserError):
      raise
    if old is None:
      raise UserError(
        f"{path}: expected a value written as in Python, such as 0.5 or 'text', got {text!r}"
      ) from error
    new = text
  if can_replace(old, new, name):
    return ints_to_floats(old, new)
  raise UserError(f"{path}: expected {describe_legal(old, name)}, got {text!r}")


def describe_legal(old: Any, name: str) -> str:
  """What may stand in place of `old` in the field `name`."""
  if name in ELEMENTS:
    return (
      "a tuple of "
      + " or ".join(f"{cls.__name__}(...)" for cls in role_of_class(ELEMENTS[name]))
      + ", such as (), (A(),)"
    )
  if dataclasses.is_dataclass(old):
    classes = [cls.__name__ for cls in role_of_value(old)] or [type(old).__name__]
    objects = " or ".join(f"{cls}(...)" for cls in classes)
    return f"{objects}, or one of its fields ({', '.join(field_names(old)) or 'none'})"
  return f"{type(old).__name__} such as {old!r}"


def role_of_value(value: Any) -> tuple[type, ...]:
  """The row of ROLES with the class of `value`; () for a registered class or a literal."""
  return role_of_class(type(value))


def can_replace(old: Any, new: Any, name: str) -> bool:
  """Whether `new` may replace `old` in the field `name`.

  A field of ELEMENTS takes a tuple of its role, or of registered classes.  A field that is None takes a
  literal, or a registered object.  Any other field takes what is like its old value.
  """
  if name in ELEMENTS:
    role = role_of_class(ELEMENTS[name])
    return isinstance(new, tuple) and all(
      dataclasses.is_dataclass(each) and role_of_value(each) in (role, ()) for each in new
    )
  return not role_of_value(new) if old is None else is_like(old, new)


def is_like(old: Any, new: Any) -> bool:
  """Whether two values have one type or one role; a registered class may stand anywhere."""
  if dataclasses.is_dataclass(old) and dataclasses.is_dataclass(new):
    return type(new) in role_of_value(old) or not role_of_value(new)
  if not isinstance(old, tuple) or not isinstance(new, tuple):
    return type(old) is type(new)
  if not old:  # such as buckets=(): literals alone
    return not any(dataclasses.is_dataclass(each) for each in new)
  return all(any(is_like(a, ints_to_floats(a, b)) for a in old) for b in new)


def ints_to_floats(old: Any, new: Any) -> Any:
  """`new` with ints converted to floats if `old` has floats in their place."""
  if isinstance(old, tuple) and isinstance(new, tuple) and old:
    return tuple(ints_to_floats(old[0], value) for value in new)
  return float(new) if isinstance(old, float) and type(new) is int else new


def parse_object(text: str, path: str, classes: dict[str, type]) -> Any:
  """An object of a class of the table, written as in Python; `path` names the option in errors.

  Raises:
    UserError: another expression, a class that is not in the table, or fields that do not fit.
  """
  try:
    return build_value(parse_expression(text), path, classes)
  except (ValueError, SyntaxError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{path}={text!r}; expected an object written as in Python, such as {min(classes)}()"
    ) from error


def parse_expression(text: str) -> ast.expr:
  return ast.parse(text.strip(), mode="eval").body


def build_value(node: ast.expr, path: str, classes: dict[str, type]) -> Any:
  """A literal, or an object such as Class(1, field=2) of a class in the table; else a ValueError."""
  if isinstance(node, (ast.Tuple, ast.List)):
    return tuple(build_value(item, path, classes) for item in node.elts)
  if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
    return ast.literal_eval(node)
  name = node.func.id
  if name not in classes:
    raise UserError(f"{path}: no class {name!r}; {suggest_class(name, classes)}")
  positional = [build_value(item, path, classes) for item in node.args]
  named = {word.arg or "**": build_value(word.value, path, classes) for word in node.keywords}
  try:
    value = classes[name](*positional, **named)
  except TypeError as error:
    raise UserError(f"{path}: {ast.unparse(node)} does not fit: {error}") from error
  return dataclasses.replace(
    value, **{field: like_default(value, field, path) for field in field_names(value)}
  )


def like_default(config: Any, name: str, path: str) -> Any:
  """A field of an object that was built from text, checked against the type or role of its default."""
  default = next(field.default for field in dataclasses.fields(config) if field.name == name)
  value = getattr(config, name)
  if default is dataclasses.MISSING or value is default:
    return value
  if can_replace(default, ints_to_floats(default, value), name):
    return ints_to_floats(default, value)
  raise UserError(f"{path}: {name}={value!r} of {type(config).__name__}; expected one like {default!r}")
