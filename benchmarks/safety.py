"""What safety costs: training with its log, average and checkpoints against the bare jitted step.

  jldm prepare digits --data-dir data
  python -m benchmarks.safety --steps 200 --pairs 3 --devices 1

Bare is a loop over the jitted step of a stage that keeps no average, on the same batches, with
nothing else in it.  Safe is `jldm train`'s own stage: the average, a line and the board every 50
steps, goodput, the notice of SIGTERM, and a checkpoint every 100 steps, each written, fingerprinted
and committed in the background.  They alternate, and the ratio is taken of neighbours.  Both are
timed from step WARM on, where everything is compiled.
"""

import argparse
import collections
import dataclasses
from pathlib import Path
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp

from jldm.cli.train import load_config
from jldm.config.override import override
from jldm.core.specs import Loaded
from jldm.data.batches import in_order
from jldm.distributed import sharding
from jldm.inference.model import StagePlace, codec_shapes
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import ImageCodec
from jldm.runs import run as runs
from jldm.runs.stage import fit_stage, start_or_resume
from jldm.storage import workdir as workdirs
from jldm.storage.array_cache import write_cache
from jldm.storage.checkpoint import Checkpoints
from jldm.train.loop import IN_FLIGHT, Hook

WARM, LOG_EVERY, SAVE_EVERY = 20, 50, 100


@dataclasses.dataclass(frozen=True)
class NoAverage:
  """What a step without an average has in its place: nothing that changes."""

  def init(self, params):
    return (jax.tree.map(jnp.copy, params),)

  def update(self, averages, params, step):
    return averages


def clocks() -> tuple[float, float]:
  """Seconds of wall and of the process's CPU."""
  return time.perf_counter(), time.process_time()


def since(before: tuple[float, float]) -> tuple[float, float]:
  return tuple(now - then for now, then in zip(clocks(), before))


def bare(run: runs.Run, source, frozen, mesh, steps: int) -> tuple[float, float]:
  run = dataclasses.replace(run, at=run.at._replace(stage=dataclasses.replace(run.stage, ema=NoAverage())))
  step, state, batches, key, _ = start_or_resume(run, source, frozen, None, mesh, 0)
  in_flight = collections.deque()
  for n, batch in enumerate(batches, 1):
    state, metrics = step(state, batch, key, frozen)
    in_flight.append(metrics)
    if len(in_flight) > IN_FLIGHT:
      jax.block_until_ready(in_flight.popleft())
    if n == WARM:
      jax.block_until_ready(state)
      before = clocks()
    if n == WARM + steps:
      jax.block_until_ready(state)
      return since(before)
  raise ValueError(f"the stage ended before step {WARM + steps}")


def safe(run: runs.Run, source, frozen, mesh, steps: int) -> tuple[float, float]:
  """With the commit of the last checkpoint that is begun."""
  times = []

  def note(n, state, metrics):
    if n in (WARM, WARM + steps):
      jax.block_until_ready(state)
      if n > WARM:
        saved.commit(wait=True)
      times.append(since(times[0]) if times else clocks())

  with Checkpoints(workdirs.checkpoints_folder(run.workdir, run.stage.name)) as saved:
    fit_stage(run, source, frozen, saved, mesh, lambda log: (Hook(1, note),))
    assert saved.steps()[-1] == (WARM + steps) // SAVE_EVERY * SAVE_EVERY
  return times[1]


def inputs(run: runs.Run, folder: Path):
  """What a stage reads; latents as they are under an encoder that was not trained."""
  data, network = run.experiment.data, run.model.codec.network
  train_set = data.open(data.train)
  if not run.stage.needs:
    return train_set, {}
  images = codecs.pixels(train_set[jnp.arange(1)]["image"])
  params = jax.jit(network.init)(jax.random.key(0), images, jax.random.split(jax.random.key(1), 1))
  encode = jax.jit(lambda images: ImageCodec(network).encode(params, {"image": images})._asdict())
  every = lambda source: (batch for batch, _ in in_order(source, 64, pad=False))
  moments = lambda source: (
    jax.device_get(encode(batch["image"])) | {"label": batch["label"]} for batch in every(source)
  )
  codec = {
    name: jnp.ones(shape.shape) for name, shape in codec_shapes(run.model).items() if name in ("mean", "std")
  }
  frozen = {"codec": Loaded(ImageCodec(network), {"params": params["params"], "extra": {}} | codec)}
  return write_cache(folder / "latents", train_set, moments), frozen


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/digits.py")
  parser.add_argument("--steps", type=int, default=200)
  parser.add_argument("--pairs", type=int, default=3)
  parser.add_argument("--devices", type=int)
  args = parser.parse_args()
  sharding.configure(args.devices)
  experiment = load_config(args.config)
  for name in experiment.names:
    for field, value in (
      ("steps", WARM + args.steps + 1),
      ("log_every_steps", LOG_EVERY),
      ("save_every_steps", SAVE_EVERY),
    ):
      experiment = override(experiment, f"{name}.{field}", str(value))
  for name in experiment.names:
    ratios, per_step = [], []
    with tempfile.TemporaryDirectory() as temporary:
      run = runs.Run(StagePlace(experiment, experiment.stage(name), Path(temporary)), args.devices)
      mesh = runs.mesh_for_stage(run.stage, args.devices)
      source, frozen = inputs(run, Path(temporary))
      frozen = sharding.replicate(mesh, frozen)
      for pair in range(args.pairs):
        alone = bare(run, source, frozen, mesh, args.steps)
        apart = dataclasses.replace(run, at=run.at._replace(workdir=Path(temporary) / str(pair)))
        full = safe(apart, source, frozen, mesh, args.steps)
        ratios.append([b / a for a, b in zip(alone, full)])
        per_step.append([1e3 * seconds / args.steps for seconds in (alone[0], full[0])])
        print(
          f"{name} {pair}: {per_step[-1][0]:.1f} and {per_step[-1][1]:.1f} ms a step; wall "
          f"{ratios[-1][0]:.3f}, "
          f"CPU {ratios[-1][1]:.3f}",
          flush=True,
        )
    wall, cpu = (statistics.median(ratio) for ratio in zip(*ratios))
    print(f"{name}: safe / bare, medians of {args.pairs}: wall {wall:.3f}, CPU {cpu:.3f}", flush=True)


if __name__ == "__main__":
  main()
