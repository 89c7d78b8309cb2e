"""Values of a config.json that anybody may have written: read as what they must be, within bounds, or
refused in one line.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from jldm.core.errors import UserError, printable

MOST_LEVELS, MOST_CHANNELS = 8, 2**14


def config_value(config: Mapping[str, Any], name: str, default: Any) -> Any:
  """A field's value; the default if the field is missing or null."""
  value = config.get(name)
  return default if value is None else value


def config_number(
  config: Mapping[str, Any], name: str, default: int, most: int = MOST_CHANNELS, least: int = 1
) -> int:
  return check_number(name, config_value(config, name, default), most, least)


def config_numbers(
  config: Mapping[str, Any], name: str, default: tuple[int, ...], most: int = MOST_CHANNELS, least: int = 1
) -> tuple[int, ...]:
  values = config_value(config, name, default)
  if not isinstance(values, (list, tuple)) or not 1 <= len(values) <= MOST_LEVELS:
    raise refused(name, values, f"1 to {MOST_LEVELS} whole numbers")
  return tuple(check_number(name, value, most, least) for value in values)


def config_real(config: Mapping[str, Any], name: str, default: float, most: float) -> float:
  """A number above 0."""
  value = config_value(config, name, default)
  if type(value) not in (int, float) or not 0 < value <= most:
    raise refused(name, value, f"a number above 0, at most {most:g}")
  return float(value)


def config_flag(config: Mapping[str, Any], name: str, default: bool = True) -> bool:
  value = config_value(config, name, default)
  if type(value) is not bool:
    raise refused(name, value, "true or false")
  return value


def config_choice(config: Mapping[str, Any], name: str, default: Any, legal: Iterable[Any]) -> Any:
  """One of `legal`."""
  value, legal = config_value(config, name, default), list(legal)
  if not isinstance(value, (str, int)) or value not in legal:
    raise refused(name, value, f"{'one of ' if len(legal) > 1 else ''}{', '.join(map(str, legal))}")
  return value


def config_per_level(config: Mapping[str, Any], name: str, default: Any, levels: int) -> tuple[Any, ...]:
  """A list of as many values as there are levels; one value that is no list stands for all."""
  values = config_value(config, name, default)
  values = values if isinstance(values, (list, tuple)) else (values,) * levels
  if len(values) != levels:
    raise refused(name, values, f"{levels} values, one a level")
  return tuple(values)


def check_number(name: str, value: Any, most: int, least: int) -> int:
  """The value; UserError unless it is a whole number from least to most."""
  if type(value) is not int or not least <= value <= most:
    raise refused(name, value, f"a whole number from {least} to {most}")
  return value


def refused(name: str, value: Any, expected: str) -> UserError:
  return UserError(f"config.json has {name}={printable(str(value)[:40])}; expected {expected}")
