"""What an autoencoder of Stable Diffusion's size takes, whole and in tiles:  python -m
benchmarks.tiling --side 512

Its 84 million parameters are random, of a variance that keeps activations near 1.  Each row is a
process of its own, which compiles, notes what it holds, and runs once: "held" is how much more it
held at most meanwhile, "temporaries" the compiler's own account of arrays within the program, which
leaves out what attention and convolutions need inside.
"""

import argparse
import multiprocessing
from pathlib import Path
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.metrics.image import psnr
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.codecs.tiling import Blended, Exact

NETWORK = KLAutoencoder()
ROWS = {  # what is run, and in what tiles
  "decode, whole": ("decode", None),
  "decode, Exact(8)": ("decode", Exact(8)),
  "decode, Exact(8, thrifty=True)": ("decode", Exact(8, thrifty=True)),
  "decode, Blended(16, 4)": ("decode", Blended(16, 4)),
  "encode, whole": ("encode", None),
  "encode, Blended(16, 4)": ("encode", Blended(16, 4)),
}
MIB = 2**20


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition(":  ")[0])
  parser.add_argument("--side", type=int, default=512, help="pixels of a side (default: 512)")
  parser.add_argument(
    "--rows", default=",".join(map(str, range(len(ROWS)))), help="which rows, by number (default: all)"
  )
  args = parser.parse_args()
  print(f"{args.side}x{args.side} pixels, one picture\n")
  print("| what | temporaries, MiB | held, MiB | seconds | max error / max | PSNR, dB | seam |")
  print("|---|---|---|---|---|---|---|", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    for number in map(int, args.rows.split(",")):
      name = list(ROWS)[number]
      with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(row, (name, args.side, folder)), flush=True)


def row(name: str, side: int, folder: str) -> str:
  """One line of the table; what whole rows give is kept in the folder for those after them."""
  method, tiles = ROWS[name]
  params, x = drawn(side, method)
  run = jax.jit(
    lambda params, x: (
      getattr(tiles, method)(NETWORK, {"params": params}, x)
      if tiles
      else NETWORK.apply({"params": params}, x, method=method)
    )
  )
  program = run.lower(params, x).compile()
  temporaries = program.memory_analysis().temp_size_in_bytes / MIB
  before, start = reset_peak(), time.monotonic()
  found = jax.block_until_ready(program(params, x))
  seconds, held = time.monotonic() - start, (peak() - before) / MIB
  found, path = np.asarray(found if method == "decode" else found.mean), Path(folder) / f"{method}.npy"
  if tiles is None:
    np.save(path, found)
  cells = compared(np.load(path), found, tiles, side) if path.exists() else ("",) * 3
  return f"| {name} | {temporaries:.0f} | {held:.0f} | {seconds:.0f} | {' | '.join(cells)} |"


def drawn(side: int, method: str) -> tuple[Any, np.ndarray]:
  """Parameters on the device, and the input of a method."""
  rng = np.random.default_rng(0)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)), keys)["params"]

  def leaf(shape: Any) -> np.ndarray:
    values = rng.standard_normal(shape.shape, np.float32)
    return values / np.sqrt(np.prod(shape.shape[:-1])) if values.ndim > 1 else 1 + values / 10

  latents = rng.standard_normal((1, side // 8, side // 8, 4), np.float32)
  images = np.float32(np.cumsum(np.cumsum(rng.standard_normal((1, side, side, 3)), 1), 2))
  return jax.tree.map(lambda shape: jnp.asarray(leaf(shape)), shapes), (
    latents if method == "decode" else images / np.abs(images).max()
  )


def compared(whole: np.ndarray, found: np.ndarray, tiles: Any, side: int) -> tuple[str, str, str]:
  """-> largest error by largest value, PSNR of range 2 scaled to the values', and how steep errors are
  where tiles end.

  The last is the mean step of the error across the first edge inside, by that of the whole
  picture's own steps there.
  """
  scale = np.abs(whole).max()
  error = np.abs(found - whole).max() / scale
  if tiles is None or not error:
    return "0", "", ""
  edge = tiles.tile * (found.shape[2] // (side // 8))
  step = lambda image: np.abs(image[:, :, edge] - image[:, :, edge - 1]).mean()
  return (
    f"{error:.1e}",
    f"{psnr(whole / scale, found / scale)[0]:.1f}",
    f"{step(found - whole) / step(whole):.1e}",
  )


def status(name: str) -> int:
  """A line of /proc/self/status in bytes."""
  line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
  return int(line.split()[1]) * 1024


def reset_peak() -> int:
  """Forgets the peak of this process so far -> what it holds now."""
  Path("/proc/self/clear_refs").write_text("5")
  return status("VmRSS")


def peak() -> int:
  return status("VmHWM")


if __name__ == "__main__":
  main()
