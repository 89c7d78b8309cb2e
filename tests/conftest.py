"""Eight fake devices, set up before anything imports JAX; what is compiled once is kept beside the tests."""

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
  )

import pytest

from tests.compiling import FLAGS

MOST_MAPPINGS = 20_000
gc.set_threshold(100_000, 20, 100)  # millions of objects of traced programs live as long as a process


def pytest_configure(config):
  """Tests compile more than they compute: XLA optimizes nothing, but where `-m as_shipped` asks for
  what a person runs.
  """
  if (
    config.option.markexpr in ("slow", "not slow")
    and "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]
  ):
    os.environ["XLA_FLAGS"] += " " + FLAGS


AS_SHIPPED = (  # those of seconds run in both suites, in the slow one as XLA optimizes them
  "tests/nn/*",
  "tests/interop/test_[dtuv]*",
  "tests/train/test_[seo]*",
  "tests/samplers/test_ddim.py",
  "tests/test_configs.py",
)


LONGEST = (  # a file runs in one process: those that run longest come first, so that all are busy to the end
  "tests/test_configs.py",
  "tests/distributed/test_layouts.py",
  "tests/faults/test_kills.py",
  "tests/faults/test_several.py",
  "tests/faults/test_signals.py",
  "tests/runs/test_train.py",
  "tests/distributed/test_meshes.py",
  "tests/inference/test_edit.py",
  "tests/distributed/test_lowering.py",
  "tests/faults/test_judged_by_several.py",
  "tests/faults/test_killed_devices.py",
  "tests/faults/test_lost.py",
)


def pytest_collection_modifyitems(config, items):
  place = {config.rootpath / path: number for number, path in enumerate(LONGEST)}
  if config.option.markexpr == "slow":
    items.sort(key=lambda item: place.get(item.path, len(place)))
  for item in items:
    path = item.path.relative_to(config.rootpath)
    if not item.get_closest_marker("slow") and any(path.match(pattern) for pattern in AS_SHIPPED):
      item.add_marker("as_shipped")


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
  """A compiled program holds memory mappings; at the kernel's limit, 65,530 by default, compiling the
  next one is a crash.
  """
  yield
  maps = Path("/proc/self/maps")
  if maps.exists() and len(maps.read_bytes().splitlines()) > MOST_MAPPINGS:
    import jax

    jax.clear_caches()


@pytest.fixture(scope="session")
def experiment():
  """Both stages of the digits, six steps each, at the smallest widths."""
  from tests.configs import config, shrunk
  from tests.trained import STEPS

  return shrunk(config("digits"), STEPS)


@pytest.fixture(scope="session")
def unbroken(experiment, tmp_path_factory):
  """Its finished workdir, to be read and copied, never written to."""
  from tests.trained import once

  return once(tmp_path_factory, "digits", experiment)


@pytest.fixture(scope="session")
def imported(tmp_path_factory):
  """A workdir of an autoencoder that was trained elsewhere."""
  from tests.trained import imported_into

  return imported_into(tmp_path_factory.mktemp("imported"))


@pytest.fixture(scope="session")
def on_imported(experiment, imported, tmp_path_factory):
  """The experiment upon it, of digits as they come with scikit-learn."""
  import dataclasses

  from jldm.cli import main
  from jldm.config.experiment import Pretrained
  from jldm.data.tfds import ImageData

  folder = str(tmp_path_factory.mktemp("data"))
  assert main(["prepare", "digits", "--data-dir", folder]) == 0
  data = ImageData(name="digits", data_dir=folder, train="train[:20]", held_out="train[20:40]", classes=10)
  return dataclasses.replace(experiment.with_stage(Pretrained(str(imported))), data=data)
