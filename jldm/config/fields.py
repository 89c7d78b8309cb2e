"""Checks that the value of every field has the type of its annotation, and that an object has its role.

What an object's field may hold is found in this order: OPEN_FIELDS, the annotation, the role of the default.
An object of a registered class may stand wherever an object may.
"""

import dataclasses
import types
import typing
from typing import Any

from flax import linen as nn

from jldm.config.registry import BUILT_IN, ELEMENTS, OPEN_FIELDS, role_of_class
from jldm.core.errors import UserError

LITERALS = {  # annotation -> the types of data that it takes; a bool is no number
  bool: (bool,),
  int: (int,),
  float: (float, int),
  str: (str,),
  types.NoneType: (types.NoneType,),
}
NUMBER = (int, float)


def check_fields(cls: type, values: dict[str, Any]) -> None:
  """Checks the values of fields of a class of jldm before it is made; a registered class checks its own.

  Raises:
    UserError: a value of another type or role, with what is legal.
  """
  if BUILT_IN.get(cls.__name__) is not cls:
    return
  if issubclass(cls, nn.Module) and (hidden := {"parent", "name"} & set(values)):
    raise UserError(f"{cls.__name__} has no field {min(hidden)!r}; remove it")
  for field in dataclasses.fields(cls):
    value = values.get(field.name, field.default)
    legal = OPEN_FIELDS.get((cls.__name__, field.name))
    # A default, such as None, may be of another type than its field.
    if value is not field.default and not is_legal(value, field, legal):
      raise UserError(f"{cls.__name__}.{field.name} is {shown(value)}; expected {describe(field, legal)}")


def is_legal(value: Any, field: dataclasses.Field, legal: tuple[type, ...] | None) -> bool:
  if field.name in ELEMENTS:
    return isinstance(value, tuple) and all(has_role(each, (ELEMENTS[field.name],)) for each in value)
  return has_role(value, legal) if legal else fits(value, field.type, field.default)


def fits(value: Any, annotation: Any, default: Any) -> bool:
  """Whether a value has the type of an annotation, or, if that is open, the kind of a default."""
  origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
  if annotation in LITERALS:
    return type(value) in LITERALS[annotation]
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, part, default) for part in parts)
  if annotation is tuple or origin is tuple:
    return isinstance(value, tuple) and fits_tuple(value, parts, default)
  if annotation is not Any and is_object(value) and role_of_class(annotation):
    return has_role(value, (annotation,))
  if is_object(default):
    return has_role(value, (type(default),))
  if type(default) in NUMBER:
    return all_numbers(value)
  return is_object(value) and (annotation is Any or is_protocol(annotation) or isinstance(value, annotation))


def fits_tuple(value: tuple, parts: tuple, default: Any) -> bool:
  """Whether the elements of a tuple fit `tuple[X, ...]` or `tuple[X, Y]`; the default gives open elements."""
  like = default[0] if isinstance(default, tuple) and default else None
  if not parts:
    return all(is_object(each) for each in value)
  if parts[-1] is Ellipsis:
    return all(fits(each, parts[0], like) for each in value)
  return len(value) == len(parts) and all(fits(each, part, None) for each, part in zip(value, parts))


def has_role(value: Any, classes: tuple[type, ...]) -> bool:
  """Whether an object's class is in a row of ROLES with one of the classes, or is registered."""
  if not is_object(value):
    return value is None and type(None) in classes
  own = role_of_class(type(value))
  return not own or any(own == role_of_class(cls) for cls in classes)


def is_object(value: Any) -> bool:
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_protocol(annotation: Any) -> bool:
  """Whether a class cannot be used in `isinstance`: a protocol that is not checked at run time."""
  return getattr(annotation, "_is_protocol", False) and not getattr(annotation, "_is_runtime_protocol", False)


def all_numbers(value: Any) -> bool:
  """Whether it is a number, or a tuple of numbers, such as a scale per sample."""
  return all(map(all_numbers, value)) if isinstance(value, tuple) else type(value) in NUMBER


def shown(value: Any) -> str:
  """A value in an error: an object by its class, anything else cut to one short line."""
  if isinstance(value, tuple):
    return f"[{', '.join(map(shown, value[:3]))}{', …' * (len(value) > 3)}]"
  text = f"{type(value).__name__}(…)" if is_object(value) else repr(value)
  return text if len(text) <= 60 else f"{text[:57]}…"


def describe(field: dataclasses.Field, legal: tuple[type, ...] | None) -> str:
  """What a field takes, in words."""
  default = field.default
  if field.name in ELEMENTS:
    legal = (ELEMENTS[field.name],)
  role = legal or ((type(default),) if is_object(default) else (field.type,))
  names = [cls.__name__ for each in role for cls in role_of_class(each)]
  if names:
    list_of = "a list of " if field.name in ELEMENTS else ""
    null = ", or null" if legal and type(None) in legal else ""
    return f"{list_of}{' or '.join(dict.fromkeys(names))}{null}"
  if field.type is Any and type(default) in NUMBER:
    return "a number"
  text = field.type.__name__ if isinstance(field.type, type) else str(field.type)
  return text.replace("jldm.", "").replace("typing.", "")
