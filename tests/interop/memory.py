"""python tests/interop/memory.py KIND FOLDER DTYPE: reads published weights, and says what memory that took.

Prints the bytes of the file, and by how much the greatest memory of this process is above what it had before.
The network is traced before, since tracing takes as much for a small file as for a large one.
"""

from pathlib import Path
import sys

import jax

from jldm.interop import denoisers, towers
from jldm.models.denoisers.unet import UNet
from jldm.models.towers.clip import CLIPText

TOWER = CLIPText(width=384, depth=16, heads=6, hidden=1536)
QUARTER = UNet(widths=(80, 160, 320, 320), token_width=192, groups=16)  # of Stable Diffusion 1.5's widths
INPUTS = {"tokens": jax.ShapeDtypeStruct((1, 1, 192), "float32")}


def like(kind: str):
  """The parameters of a network as shapes."""
  if kind == "tower":
    return towers.init_shapes(TOWER)
  return denoisers.shapes(QUARTER, (denoisers.SMALLEST, denoisers.SMALLEST, 4), INPUTS)


def read(kind: str, folder: Path, dtype: str):
  if kind == "tower":
    return towers.load_tower(folder, dtype=dtype)[1]
  return denoisers.read_unet(folder, "eps", dtype=dtype).params


def resident(field: str) -> int:
  """The bytes that this process has in memory now, VmRSS, or had at most, VmHWM.

  `ru_maxrss` would be that of the process that started this one, if that was larger.
  """
  lines = Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


if __name__ == "__main__":
  kind, folder, dtype = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
  like(kind)
  jax.device_put(0).block_until_ready()
  before = resident("VmRSS")
  params = read(kind, folder, dtype)
  most = resident("VmHWM")
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
  (file,) = folder.glob("*.safetensors")
  print(file.stat().st_size, most - before)
