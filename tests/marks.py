"""Marks of parametrized tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_after(count: int, values: Iterable[Any]) -> list[Any]:
  """Parameters of which all but the first `count` are slow: these compile the same again for other values."""
  return [
    value if place < count else pytest.param(value, marks=pytest.mark.slow)
    for place, value in enumerate(values)
  ]
