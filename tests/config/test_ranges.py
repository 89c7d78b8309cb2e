"""Every number of every class is in its interval, or refused before anything is done."""

import dataclasses
import math

import numpy as np
import pytest

from jldm.config import ranges, registry
from jldm.config.experiment import Experiment, Sampling
from jldm.config.override import override
from jldm.config.ranges import RANGES, check_ranges, contains
from jldm.core.errors import UserError
from jldm.samplers.guidance import ClassifierFree
from tests.configs import config

HUGE = 10**30


def number_fields(cls: type) -> list[str]:
  """The fields that hold numbers, or tuples of them."""
  fields = [field for field in dataclasses.fields(cls) if field.name not in ("parent", "name")]
  return [field.name for field in fields if "int" in str(field.type) or "float" in str(field.type)]


def made(cls: type, field: str, value: object) -> object:
  """An object with one field changed after it was made: not all classes have defaults."""
  other = object.__new__(cls)
  for each in dataclasses.fields(cls):
    default = None if each.default is dataclasses.MISSING else each.default
    object.__setattr__(other, each.name, default)
  object.__setattr__(other, field, value)
  return other


FIELDS = [(cls, field) for cls in registry.BUILT_IN.values() for field in number_fields(cls)]


def test_every_field_that_is_a_number_has_an_interval_and_every_interval_a_field():
  assert len(FIELDS) > 150
  lacking = [f"{cls.__name__}.{field}" for cls, field in FIELDS if field not in RANGES.get(cls.__name__, {})]
  assert not lacking
  known = {name: {field.name for field in dataclasses.fields(cls)} for name, cls in registry.BUILT_IN.items()}
  assert not [name for name, fields in RANGES.items() if not fields.keys() <= known[name]]


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_numbers_outside_the_interval_are_refused(cls, field):
  interval = RANGES[cls.__name__][field]
  for value in (-1, 0, math.inf, -math.inf, HUGE, 1.5, float("nan")):
    for whole in (value, (value,)):
      legal = contains(interval, value) if value == value else False
      legal &= not (ranges.is_whole(cls.__dataclass_fields__[field]) and value != value // 1)
      if legal:
        check_ranges(made(cls, field, whole))
      else:
        with pytest.raises(UserError, match=rf"{field}=.*; expected"):
          check_ranges(made(cls, field, whole))


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_defaults_are_legal(cls, field):
  default = cls.__dataclass_fields__[field].default
  if default is not dataclasses.MISSING:
    check_ranges(made(cls, field, default))


@pytest.mark.parametrize(
  ("path", "value", "words"),
  [
    ("autoencoder.optimizer.clip_norm", "-1", r"autoencoder.optimizer.clip_norm=-1.*\[0, 1e6\]"),
    ("denoiser.objective.offset_noise", "nan", "denoiser.objective.offset_noise=nan; expected"),
    ("denoiser.objective.network.width", "0", r"denoiser.objective.network.width=0; .*\[1, 1048576\]"),
    ("denoiser.ema.decay", "1.1", r"denoiser.ema.decay=1.1; expected numbers in \[0, 1\]"),
    ("denoiser.steps", str(HUGE), r"denoiser.steps=1000000000000000000000000000000; expected whole"),
    ("seed", "-1", r"seed=-1; expected whole numbers in \[0, 18446744073709551615\]"),
  ],
)
def test_a_changed_experiment_names_the_field(path, value, words):
  with pytest.raises(UserError, match=words):
    override(config("digits"), path, value)


def test_every_config_and_each_value_of_an_array_is_checked():
  for name in ("digits", "folder", "imagenet_256_unet"):
    assert isinstance(config(name), Experiment)
  Sampling(guidance=ClassifierFree(np.array([1.0, 2.0], np.float32)))
  with pytest.raises(UserError, match=r"sampling.guidance.guidance_scale=.*nan"):
    Sampling(guidance=ClassifierFree(np.array([1.0, np.nan], np.float32)))
