"""How the time and the memory of a DiT's training grow with tokens, batch, depth, width and steps.

  python -m benchmarks.growth --json growth.json

A point is the loss and its gradient, or a draw of so many steps, at DiT-384x6 with 64 tokens and a batch of 16
but for one number.  An exponent is the slope of a line through the logarithms: of operations as XLA counts
them, which is the theory; of seconds; and of the bytes that the compiled program needs besides its arguments.
"""

import argparse
import json
from pathlib import Path
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed import sampler_of
from jldm.models.denoisers.dit import DiT
from jldm.nn.transformer import ModulatedBlock

BASE = {"tokens": 64, "batch": 16, "depth": 6, "width": 384}
AXES = {
  "tokens": (64, 144, 256, 576),
  "batch": (4, 8, 16, 32),
  "depth": (3, 6, 12),
  "width": (192, 384, 768),
  "steps": (10, 20, 40, 80),
}
HEAD_WIDTH, MATMUL = 64, 2048


class Point(NamedTuple):
  """flops: operations of the program; 0 where a loop hides them.   seconds: a median.   bytes: temporary."""

  flops: float
  seconds: float
  bytes: int


def measure(program: Any, arguments: tuple, reps: int) -> Point:
  compiled = program.lower(*arguments).compile()
  call = lambda: jax.block_until_ready(compiled(*arguments))
  call()
  seconds = []
  for _ in range(reps):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  flops = compiled.cost_analysis()["flops"]
  return Point(flops, float(np.median(seconds)), compiled.memory_analysis().temp_size_in_bytes)


def network_of(tokens: int, batch: int, depth: int, width: int) -> tuple[DiT, Any, jax.Array]:
  """A network, its parameters, and noise [B, H, W, 4] of so many tokens."""
  side = 2 * round(tokens**0.5)
  block = ModulatedBlock(heads=width // HEAD_WIDTH)
  network = DiT(width=width, depth=depth, patch=2, block=block, unroll=depth)
  z = jax.random.normal(jax.random.key(0), (batch, side, side, 4))
  return network, jax.jit(network.init)(jax.random.key(1), z, jnp.zeros(batch), {}), z


def training_point(reps: int, **numbers: int) -> Point:
  """A loss and its gradient."""
  network, params, z = network_of(**BASE | numbers)
  level = jnp.linspace(0, 1, len(z))
  loss = lambda params: jnp.square(network.apply(params, z, level, {}).value - z).mean()
  return measure(jax.jit(jax.value_and_grad(loss)), (params,), reps)


def sampling_point(reps: int, steps: int) -> Point:
  """One sample in so many steps."""
  network, params, z = network_of(**BASE | {"batch": 1})
  apply = lambda params, z, level, other: network.apply(params, z, level / 1000, {}).value
  point = measure(sampler_of(apply, steps), (params, {"x": z, "other": jnp.zeros(1)}), reps)
  return point._replace(flops=steps)  # XLA counts the body of a loop once


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
  """The slope of log(value) over log(size)."""
  return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def grow(axis: str, reps: int) -> dict:
  """A row: the exponents along an axis, and its points."""
  point = sampling_point if axis == "steps" else training_point
  points = [point(reps, **{axis: size}) for size in AXES[axis]]
  exponents = {name: round(exponent(AXES[axis], each), 2) for name, each in zip(Point._fields, zip(*points))}
  return {"axis": axis, "sizes": AXES[axis], "exponents": exponents, "points": [p._asdict() for p in points]}


def matmul_limit(reps: int) -> float:
  """Operations per second of one large product in float32."""
  square = jnp.ones((MATMUL, MATMUL))
  return 2 * MATMUL**3 / measure(jax.jit(jnp.matmul), (square, square), reps).seconds


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument("--axes", default=",".join(AXES), help="a comma list (default: %(default)s)")
  parser.add_argument("--reps", type=int, default=5)
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  limit, base = matmul_limit(args.reps), training_point(args.reps)
  share = base.flops / base.seconds / limit
  rows = [{"matmul_gflops": round(limit / 1e9, 1), "training_share": round(share, 3)}]
  print(json.dumps(rows[0]), flush=True)
  for axis in args.axes.split(","):
    rows.append(grow(axis, args.reps))
    print(json.dumps({name: rows[-1][name] for name in ("axis", "sizes", "exponents")}), flush=True)
  if args.json:
    Path(args.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
  main()
