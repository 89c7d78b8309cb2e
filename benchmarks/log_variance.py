"""Whether the learned log-variance follows the loss over t:  python -m benchmarks.log_variance WORKDIR

Of a run whose denoiser has log_variance=True, measures the loss of the averaged parameters on a
batch of training latents at 50 times, and draws its logarithm and the learned u(t) into
WORKDIR/log_variance.png; prints how far apart they are.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.specs import Loaded
from jldm.diffusion.times import At
from jldm.distributed import sharding
from jldm.inference.load import load
from jldm.inference.model import find_stage
from jldm.media import images as pictures, sheets
from jldm.models.conditioners.conditioner import draw_conditions, join_conditions
from jldm.objectives.diffusion import Diffusion
from jldm.runs import latents, run as runs

TIMES = 50


def both(
  objective: Diffusion, params: dict, frozen: dict, batch: dict, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """log of the mean loss at t [], and u(t)."""
  certain = objective.network.clone(log_variance=False)
  known = {name: value for name, value in params["denoiser"].items() if name != "log_variance"}
  plain = dataclasses.replace(objective, network=certain, times=At(t))
  losses, _ = plain.loss(params | {"denoiser": known}, {}, (), frozen, batch, jax.random.key(0))
  noise_level = jnp.full(1, objective.parametrization.c_noise(objective.process, t))
  one = jax.tree.map(lambda x: x[:1], batch)
  keys = [jax.random.split(jax.random.key(0), 1)] * len(objective.conditioners)
  inputs = join_conditions(draw_conditions(objective.conditioners, params, one, lambda images: images, keys))
  output = objective.network.apply(
    {"params": params["denoiser"]}, jnp.zeros_like(one["mean"]), noise_level, inputs
  )
  return jnp.log(losses.mean()), output.log_variance[0]


def measure(workdir: Path, size: int = 512) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """times [50], log loss [50], u [50]."""
  at = find_stage(workdir)
  objective = at.stage.objective
  if not getattr(objective.network, "log_variance", False):
    raise SystemExit(
      f"the denoiser in {str(workdir)!r} learned no log-variance; train with network.log_variance=True"
    )
  model, params = load(workdir)
  cache = latents.open_encoded(runs.Run(at), params["codec"])
  rows = np.arange(size)
  batch = cache[rows % len(cache)] | {"row": rows, "stratum": np.float32(rows / size)}
  frozen = {"codec": Loaded(model.codec, params["codec"])}
  at = jax.jit(lambda params, frozen, batch, t: both(objective, params, frozen, batch, t))
  times = np.linspace(0.02, 0.98, TIMES)
  pairs = [at(params, frozen, batch, jnp.float32(t)) for t in times]
  return times, *np.asarray(pairs).T


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("workdir", type=Path)
  workdir = parser.parse_args().workdir
  sharding.configure(1)
  times, log_loss, u = measure(workdir)
  plot = sheets.curves({"log of the loss": (times, log_loss), "learned u(t)": (times, u)}, "t", "")
  pictures.write_png(workdir / "log_variance.png", plot, {"what": "log_variance"})
  apart = np.abs(log_loss - u)
  print(
    f"|u - log loss|: mean {apart.mean():.3f}, largest {apart.max():.3f}; log loss spans "
    f"{np.ptp(log_loss):.2f}"
  )


if __name__ == "__main__":
  main()
