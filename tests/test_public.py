"""The public face: every name is there, and nothing is imported before it is used."""

import subprocess
import sys

import pytest

import jldm
from tests.configs import ROOT


def modules_after(line: str) -> set[str]:
  """The modules of a new process that has run one line."""
  program = f"import sys; {line}; print(*sys.modules)"
  done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
  return set(done.stdout.split())


def test_importing_jldm_imports_none_of_its_parts():
  loaded = modules_after("import jldm; dir(jldm)")
  assert "jldm" in loaded and not loaded & {"jax", "numpy", "flax", "PIL"}
  assert not [name for name in loaded if name.startswith("jldm.")]


def test_a_name_imports_its_own_part_alone():
  loaded = modules_after("import jldm; jldm.show")
  assert "jldm.media.sheets" in loaded and "jax" not in loaded


@pytest.mark.parametrize("name", jldm.PUBLIC)
def test_every_name_is_what_its_module_has(name):
  value = getattr(jldm, name)
  assert value.__name__ == name and value.__module__ == jldm.PUBLIC[name] and callable(value)
  assert name in dir(jldm) and name in jldm.__all__ and getattr(jldm, name) is value


def test_the_version_is_that_of_the_package():
  from importlib import metadata

  assert jldm.__version__ == metadata.version("jldm") and "__version__" in dir(jldm)


@pytest.mark.parametrize(
  ("name", "hint"),
  [
    ("lod", "did you mean 'load'?"),
    ("Experimant", "did you mean 'Experiment'?"),
    ("zzz", "it has Evaluation, Experiment"),
  ],
)
def test_an_unknown_name_is_an_attribute_error_with_the_nearest(name, hint):
  with pytest.raises(AttributeError) as error:
    getattr(jldm, name)
  assert repr(name) in str(error.value) and hint in str(error.value)
