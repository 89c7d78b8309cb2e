"""What reading published networks takes: the file and a tenth, split over devices if there are several."""

import collections
import functools
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pytest

from jldm.core.errors import UserError
from jldm.core.trees import map_named
from jldm.distributed import sharding
from jldm.interop import denoisers, towers
from jldm.models.denoisers.unet import UNet
from jldm.models.towers.clip import CLIPText
from tests.interop import memory
from tests.networks import randomised

HERE = Path(__file__).parent
GIGABYTE = 2**30
# Stable Diffusion 1.5 in all but its widths, a tenth of them
NARROW = UNet(widths=(32, 64, 128, 128), token_width=96, groups=8)
NARROW_INPUTS = {"tokens": jax.ShapeDtypeStruct((1, 1, 96), "float32")}


def printed(script: str, *words: str) -> list[str]:
  """What a script prints in a process of its own, compiled as XLA does by default."""
  environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
  environment["PYTHONPATH"] = str(HERE.parents[1])
  command = [sys.executable, str(HERE / script), *words]
  return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
  """A folder of a narrow U-Net of Stable Diffusion 1.5, and its parameters."""
  folder = tmp_path_factory.mktemp("narrow")
  params = randomised(denoisers.shapes(NARROW, (64, 64, 4), NARROW_INPUTS), scale=0.1)
  denoisers.save_unet(folder, NARROW, params)
  return folder, params


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tower", "unet"])
def test_reading_takes_the_file_and_a_tenth(kind, tmp_path):
  params = randomised(memory.like(kind))
  for dtype in ("float32", "bfloat16"):
    folder, cast = tmp_path / dtype, jax.tree.map(lambda x, dtype=dtype: np.asarray(x, dtype), params)
    if kind == "tower":
      towers.save_tower(folder, memory.TOWER, cast)
    else:
      denoisers.save_unet(folder, memory.QUARTER, cast)
    size, grown = map(int, printed("memory.py", kind, str(folder), dtype))
    assert size > 90e6 and grown <= 1.1 * size


@pytest.mark.slow
def test_a_step_at_the_true_size_takes_less_than_12_gigabytes():
  parameters, _, seconds, most = printed("true_size.py", "float32")
  assert int(parameters) == 859_520_964 and int(most) <= 12 * GIGABYTE
  assert float(seconds) <= 60


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "share"), [((8, 1), 0.14), ((4, 2), 0.16)])
def test_a_u_net_is_read_onto_the_devices_that_hold_it(narrow, layout, share):
  """Biases and norms, which are a larger share of a narrow network, are whole on each device."""
  folder, params = narrow
  mesh = sharding.make_mesh(jax.devices(), *layout)
  read = denoisers.read_unet(folder, "eps", place=functools.partial(sharding.place_named, mesh)).params
  held = collections.Counter()
  for leaf in jax.tree.leaves(read):
    for shard in leaf.addressable_shards:
      held[shard.device] += shard.data.nbytes
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  assert len(held) == 8 and set(held.values()) == {max(held.values())}
  assert whole / 8 < max(held.values()) <= share * whole
  expected = sharding.shardings_like(mesh, params)
  assert jax.tree.map(lambda leaf: leaf.sharding, read) == expected
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(read), params)


@pytest.mark.slow
def test_parameters_keep_a_dtype(narrow, tmp_path):
  folder, params = narrow
  read = denoisers.read_unet(folder, "eps", dtype="bfloat16")
  assert read.network.dtype == "bfloat16"
  rounded = jax.tree.map(lambda x: np.asarray(x, "bfloat16"), params)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(read.params), rounded)
  with pytest.raises(UserError, match="dtype='int8' of parameters; expected one of float32, bfloat16"):
    denoisers.read_unet(folder, "eps", dtype="int8")
  denoisers.save_unet(tmp_path, read.network, read.params)
  assert (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size < 2.1 * sum(
    leaf.size for leaf in jax.tree.leaves(params)
  )


def test_a_tower_is_read_onto_devices(tmp_path):
  network = CLIPText(vocabulary=96, length=6, width=64, depth=2, heads=4, hidden=256)
  towers.save_tower(tmp_path, network, randomised(towers.init_shapes(network)))
  mesh, names = sharding.make_mesh(jax.devices(), 8), []

  def place(name, value):
    names.append(name)
    return sharding.place_named(mesh, name, value)

  read = towers.load_tower(tmp_path, place=place)[1]
  spec = lambda path, leaf: sharding.partition_spec(path, leaf.shape, mesh)
  assert jax.tree.map(lambda leaf: leaf.sharding.spec, read) == map_named(spec, read)
  assert len(names) == len(set(names)) == len(jax.tree.leaves(read))
