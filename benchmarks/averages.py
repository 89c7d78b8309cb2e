"""How near averages made afterwards come to those that were tracked:  python -m benchmarks.averages WORKDIR

Of a run with ema=Power((a, b, c, ...)): each of c, ... is made from the snapshots of a and b alone,
of all or of every 2nd, 4th, 8th, and compared with its own snapshot at the last step, as max
|difference| / max |tracked|.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jldm.inference.model import build_model, denoiser_shapes
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints
from jldm.train.ema import reconstruct


def relative_error(made: Any, tracked: Any) -> float:
  pairs = list(zip(jax.tree.leaves(made), jax.tree.leaves(tracked), strict=True))
  return max(float(np.abs(a - b).max()) for a, b in pairs) / max(float(np.abs(b).max()) for _, b in pairs)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdir", type=Path)
  workdir = parser.parse_args().workdir
  like = denoiser_shapes(build_model(workdirs.read_experiment(workdir)))
  with Checkpoints(workdirs.averages_folder(workdir, "denoiser"), read_only=True) as kept:
    steps = kept.steps()
    (*first,) = sorted(map(float, kept.items(steps[-1])))[:2]
    others = sorted(map(float, kept.items(steps[-1])))[2:]
    load = lambda step, width: jax.tree.map(np.asarray, kept.restore(step, {str(width): like})[str(width)])
    print(f"| snapshots | every | {' | '.join(f'sigma_rel {width}' for width in others)} |")
    print("|---" * (2 + len(others)) + "|")
    for stride in (1, 2, 4, 8):
      chosen = steps[::-1][::stride][::-1]
      errors = []
      for width in others:
        snapshots = [((step, a), lambda step=step, a=a: load(step, a)) for step in chosen for a in first]
        errors.append(relative_error(reconstruct(width, steps[-1], snapshots), load(steps[-1], width)))
      cells = " | ".join(f"{error:.1e}" for error in errors)
      print(f"| {len(chosen)} | {chosen[-1] - chosen[-2]} steps | {cells} |", flush=True)


if __name__ == "__main__":
  main()
