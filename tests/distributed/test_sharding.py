import dataclasses
import os
import subprocess
import sys

import jax
from jax.sharding import AxisType
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.distributed import sharding

BATCH = {"image": np.arange(16 * 6, dtype=np.uint8).reshape(16, 2, 3, 1), "row": np.arange(16)}


def refused(*arguments) -> str:
  with pytest.raises(UserError) as error:
    sharding.mesh_for(*arguments)
  assert "\n" not in str(error.value)
  return str(error.value)


def test_there_are_eight_devices():
  assert jax.device_count() == 8
  assert sharding.choose_devices() == jax.devices() and sharding.choose_devices(3) == jax.devices()[:3]


@pytest.mark.parametrize(
  "batch_size, devices, size", [(16, None, 8), (12, None, 6), (11, None, 1), (12, 4, 4)]
)
def test_a_mesh_over_devices_that_divide_the_batch(batch_size, devices, size):
  mesh = sharding.mesh_for(batch_size, devices)
  assert mesh.axis_names == sharding.AXES and mesh.devices.ravel().tolist() == jax.devices()[:size]
  assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize(
  "batch_size, devices, message",
  [
    (
      12,
      8,
      "batch size 12 is not divisible by 8 devices; use batch size 8 or 16, or --devices 1 or 2 or 3 or "
      "4 or 6",
    ),
    (100, 3, "use batch size 99 or 102, or --devices 1 or 2 or 4 or 5"),
    (5, 8, "use batch size 8, or --devices 1 or 5"),
    (16, 9, "devices=9; expected 1 to 8, the number of cpu devices of this machine"),
    (16, 0, "devices=0; expected 1 to 8"),
    (16, -1, "devices=-1; expected 1 to 8"),
  ],
)
def test_a_batch_or_device_count_that_does_not_fit_is_refused_with_the_nearest_legal_ones(
  batch_size, devices, message
):
  assert message in refused(batch_size, devices)


@pytest.mark.parametrize("batch_size, devices", [(12, 8), (100, 3), (5, 8), (1001, 6)])
def test_what_is_reported_to_use_does_fit(batch_size, devices):
  sizes, counts = refused(batch_size, devices).split("; use batch size ")[1].split(", or --devices ")
  for size in sizes.split(" or "):
    sharding.mesh_for(int(size), devices)
  for count in counts.split(" or "):
    sharding.mesh_for(batch_size, int(count))


@pytest.mark.parametrize("devices", [1, 8])
def test_a_batch_is_split_and_parameters_are_whole(devices):
  mesh = sharding.mesh_for(16, devices)
  batch, whole = sharding.shard_batch(mesh, BATCH), sharding.replicate(mesh, BATCH)
  for name, x in BATCH.items():
    for placed, rows in ((batch[name], 16 // devices), (whole[name], 16)):
      np.testing.assert_array_equal(placed, x)
      assert placed.dtype == x.astype(placed.dtype).dtype and len(placed.addressable_shards) == devices
      assert {len(shard.data) for shard in placed.addressable_shards} == {rows}
  for shard in batch["row"].addressable_shards:
    np.testing.assert_array_equal(shard.data, BATCH["row"][shard.index])
  assert batch["row"].sharding.is_equivalent_to(sharding.batch_sharding(mesh), 1)


def test_quick_compile_changes_no_result():
  mesh = sharding.mesh_for(16, 1)
  draw = lambda key: jax.random.normal(key, (100,))
  quick = jax.jit(draw, compiler_options=sharding.quick_compile_options(mesh))(jax.random.key(0))
  np.testing.assert_allclose(quick, jax.jit(draw)(jax.random.key(0)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "flags, devices, cache, expected",
  [
    ("", 3, "", "3 .cache/jldm/compiled"),
    ("--xla_force_host_platform_device_count=5", 2, "/elsewhere", "5 /elsewhere"),
  ],
)
def test_configure_before_the_first_device(tmp_path, flags, devices, cache, expected):
  program = f"""
import jax
from jldm.distributed import sharding
sharding.configure({devices})
print(jax.device_count(), jax.config.jax_compilation_cache_dir)
sharding.configure(7)
assert jax.device_count() == {expected.split()[0]}
"""
  environment = os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": cache, "HOME": str(tmp_path)}
  done = subprocess.run(
    [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=100
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip().replace(f"{tmp_path}/", "") == expected


@pytest.mark.parametrize(
  "count, most, devices, size",
  [
    (20, 250, None, 24),
    (3, 250, None, 3),
    (100, 10, 4, 12),
    (7, 250, sharding.Layout(8, fsdp=2, tensor=2), 8),
  ],
)
def test_rows_are_filled_up_to_what_the_mesh_divides(count, most, devices, size):
  mesh, batch_size = sharding.mesh_for_samples(count, most, devices)
  assert batch_size == size and batch_size % sharding.batch_shard_count(mesh) == 0


@dataclasses.dataclass(frozen=True)
class Chip:
  """What JAX says of a device of a TPU v5e, as far as a mesh asks."""

  id: int
  coords: tuple[int, int, int]
  slice_index: int
  core_on_chip: int = 0
  process_index: int = 0
  platform: str = "tpu"
  device_kind: str = "TPU v5 lite"


def chips(slices: int) -> list[Chip]:
  """Slices of 4x4."""
  places = [(n, x, y) for n in range(slices) for y in range(4) for x in range(4)]
  return [Chip(number, (x, y, 0), n) for number, (n, x, y) in enumerate(places)]


@pytest.mark.parametrize(
  "slices, fsdp, tensor",
  [
    (1, 1, 1),
    (1, 2, 1),
    (1, 4, 1),
    (1, 8, 1),
    (1, 16, 1),
    (1, 2, 2),
    (1, 4, 2),
    (2, 1, 1),
    (2, 2, 1),
    (2, 16, 1),
    (2, 2, 4),
    (2, 32, 1),
  ],
)
def test_every_layout_is_laid_on_the_wires_of_a_tpu(slices, fsdp, tensor, monkeypatch):
  """What talks most stays within a slice, while `data` alone can go between slices; nothing is lost or
  there twice.
  """
  devices = chips(slices)
  monkeypatch.setattr(sharding.jax, "device_count", lambda: len(devices))
  monkeypatch.setattr(sharding, "Mesh", lambda grid, axes, axis_types: grid)
  grid = sharding.make_mesh(devices, fsdp, tensor)
  assert grid.shape == (16 * slices // (fsdp * tensor), fsdp, tensor)
  assert sorted(chip.id for chip in grid.flat) == list(range(len(devices)))
  if fsdp * tensor <= 16:
    assert all(len({chip.slice_index for chip in row.flat}) == 1 for row in grid)
  if slices == 1 and tensor > 1:  # neighbours by wire
    assert all(
      sum(abs(a - b) for a, b in zip(*(chip.coords for chip in pair))) == 1
      for pair in grid.reshape(-1, tensor)[:, :2]
    )
