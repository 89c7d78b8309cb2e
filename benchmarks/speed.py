"""Forward passes, training steps and samples beside torch's, with the same weights and inputs.

  python -m benchmarks.speed --rows dit64,unet,kl --torch /path/to/python --json speed.json

A training step is loss, gradient, clipping, AdamW and the average of parameters: jldm's own
`make_step`, as `jldm train` runs it.  A sample is fifty steps of DDIM, one program here and a loop over
diffusers' scheduler there.  Calls are interleaved; ratios are medians of pairs, to the best
variant of torch of the row.  `foreign` is what other processes used of a core meanwhile.  Without --torch
its columns are left out.
"""

import argparse
from collections.abc import Callable, Iterable
import functools
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.keys import row_keys
from jldm.core.specs import Output
from jldm.diffusion.process import Discrete, LinearBetas
from jldm.diffusion.target import Predict, denoiser
from jldm.distributed import sharding
from jldm.interop import denoisers, pretrained
from jldm.objectives.objective import Aux
from jldm.samplers.ddim import DDIM
from jldm.samplers.grid import leading, strided
from jldm.samplers.sample import scan_steps
from jldm.train.ema import Decay
from jldm.train.optimizer import AdamW, Constant
from jldm.train.state import init_state
from jldm.train.step import make_step

WORKER = Path(__file__).with_name("speed_torch.py")
CORES = len(os.sched_getaffinity(0))
CALLS = ("forward", "train", "sample")
CHAIN, STEPS = Discrete(LinearBetas()), 50  # diffusers' DDIMScheduler has the same by default


class Row(NamedTuple):
  """What is timed.   x: [H, W, C] of a sample; read(folder, dtype) -> (params, apply)."""

  x: tuple[int, int, int]
  batch: int
  read: Callable
  denoises: bool = False


def read_transformer(folder: Path, dtype: str) -> tuple:
  loaded = denoisers.read_dit(folder, "dit", as_diffusers=True)
  network = loaded.network.clone(dtype=dtype, unroll=loaded.network.depth)

  def apply(params, x, level, other):
    output = network.apply({"params": params}, x, level / 1000, {"label": other})
    return jnp.concatenate([output.value, output.variance], -1)

  return loaded.params, apply


def read_unet(folder: Path, dtype: str) -> tuple:
  loaded = denoisers.read_unet(folder, "eps")
  network = loaded.network.clone(dtype=dtype)

  def apply(params, x, level, other):
    return network.apply({"params": params}, x, level / 1000, {"tokens": other}).value

  return loaded.params, apply


def autoencoder_reader(parts: str) -> Callable:
  def read(folder: Path, dtype: str) -> tuple:
    loaded, params = pretrained.load(folder)
    network = loaded.network.clone(dtype=dtype)

    def apply(params, x, level, other):
      call = lambda method, x: network.apply({"params": params["params"]}, x, method=method)
      x = call("encode", x).mean if "encode" in parts else x
      return call("decode", x) if "decode" in parts else x

    return params, apply

  return read


ROWS = {
  "dit64": Row((16, 16, 4), 16, read_transformer, denoises=True),
  "dit256": Row((32, 32, 4), 16, read_transformer, denoises=True),
  "unet": Row((16, 16, 4), 16, read_unet, denoises=True),
  "kl": Row((64, 64, 3), 4, autoencoder_reader("encode, decode")),
  "encoder": Row((64, 64, 3), 4, autoencoder_reader("encode")),
  "decoder": Row((16, 16, 4), 4, autoencoder_reader("decode")),
}


def inputs(row: Row, batch: int, width: int) -> dict[str, np.ndarray]:
  """x [B, H, W, C], level int [B], and labels int [B] or tokens [B, 8, 64]; `target` comes with the output."""
  rng = np.random.RandomState(0)
  other = rng.standard_normal((batch, 8, 64)).astype(np.float32) if width else np.arange(batch) % 10
  return {
    "x": rng.standard_normal((batch, *row.x)).astype(np.float32),
    "level": np.linspace(0, 999, batch).astype(np.int64),
    "other": other,
  }


class Torch:
  """The other process."""

  def __init__(self, python: str, name: str, folder: Path, dtype: str):
    environment = os.environ | {"GOMP_SPINCOUNT": "10000"}  # its threads spin and look slow under load
    self.process = subprocess.Popen(
      [python, str(WORKER), name, str(folder), dtype, str(CORES)],
      stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    self.parameters = self.answer()["parameters"]

  def answer(self) -> dict:
    return json.loads(self.process.stdout.readline() or sys.exit("error: the torch process ended"))

  def ask(self, **request: Any) -> dict:
    self.process.stdin.write(json.dumps(request) + "\n")
    self.process.stdin.flush()
    return self.answer()

  def outputs(self, inputs: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """What its network gives for the arrays of a file, and what it draws from them."""
    folder = inputs.parent
    self.ask(read=str(inputs), write={name: str(folder / f"{name}.npy") for name in names})
    return {name: np.load(folder / f"{name}.npy") for name in names}

  def seconds(self, call: str, variant: str) -> float:
    return self.ask(call=call, variant=variant)["seconds"]


def sample(apply: Callable, pairs: jax.Array, params: Any, batch: dict) -> jax.Array:
  """DDIM along pairs of times [N, 2] from the noise x [B, H, W, C]; the network's first C channels are eps."""
  z = batch["x"]  # [B, H, W, C]

  def predict(z, noise_level, estimate, to):
    return Output(apply(params, z, 1000 * noise_level, batch["other"])[..., : z.shape[-1]])

  denoise = denoiser(CHAIN, Predict("eps"), predict)
  keys = row_keys(jax.random.key(0), jnp.arange(len(z)))
  return scan_steps(CHAIN, denoise, DDIM(), z, pairs, keys)[0].z


def sampler_of(apply: Callable, steps: int = STEPS) -> Callable:
  """The program of so many steps, sample(params, batch)."""
  return jax.jit(functools.partial(sample, apply, strided(CHAIN, leading(CHAIN, steps))))


def ours(params: Any, apply: Callable, arrays: dict, devices: int) -> dict[str, Callable[[], float]]:
  """Seconds of each of CALLS, by name, on so many devices."""
  mesh = sharding.mesh_for(len(arrays["x"]), devices)
  batch = sharding.shard_batch(mesh, arrays)
  params = sharding.replicate(mesh, params)

  def loss(params, extra, ema, frozen, batch, key):
    error = apply(params, batch["x"], batch["level"], batch["other"]) - batch["target"]
    return jnp.square(error).mean((1, 2, 3)), Aux(extra, {})

  tx, ema = AdamW(schedule=Constant(peak=1e-4), weight_decay=0.01).build(1000), Decay(0.999)
  state = jax.tree.map(jnp.copy, init_state(params, {}, tx, ema))
  forward = sharding.with_mesh(mesh, jax.jit(lambda p, b: apply(p, b["x"], b["level"], b["other"])))
  draw = sharding.with_mesh(mesh, sampler_of(apply))
  step = sharding.with_mesh(mesh, make_step(loss, tx, ema, 1, sharding.shardings_like(mesh, state)))
  key = sharding.replicate(mesh, jax.random.key(0))

  def time_call(call: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call(params, batch))
    return time.perf_counter() - start

  def time_step() -> float:
    nonlocal state
    start = time.perf_counter()
    state, metrics = step(state, batch, key, {})
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - start

  timed = {
    name: functools.partial(time_call, call) for name, call in (("forward", forward), ("sample", draw))
  }
  return timed | {"train": time_step}


def relative_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
  return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def busy_seconds() -> float:
  """What all processes have used of all cores so far."""
  values = [int(x) for x in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
  return (sum(values[:3]) + sum(values[5:8])) / os.sysconf("SC_CLK_TCK")


def used_seconds(other: Torch | None) -> float:
  """What this process and torch's have used so far."""
  fields = Path(f"/proc/{other.process.pid}/stat").read_text().rpartition(")")[2].split() if other else []
  theirs = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0
  return time.process_time() + theirs


def compare(calls: dict[str, Callable[[], float]], reps: int, other: Torch | None) -> dict:
  """Medians of interleaved calls in milliseconds, ratio of our best to torch's best, foreign load."""
  for call in calls.values():
    call(), call()
  start, busy, used = time.perf_counter(), busy_seconds(), used_seconds(other)
  seconds = {name: [] for name in calls}
  for _ in range(reps):
    for name, call in calls.items():
      seconds[name].append(call())
  elapsed = time.perf_counter() - start
  foreign = (busy_seconds() - busy - (used_seconds(other) - used)) / elapsed
  medians = {name: float(np.median(each)) for name, each in seconds.items()}
  result = {
    "ms": {name: round(1e3 * each, 2) for name, each in medians.items()},
    "foreign": round(foreign, 3),
  }
  if other:
    best = [min((n for n in calls if n.startswith(who)), key=medians.get) for who in ("jldm", "torch")]
    ratio = np.median(np.divide(*(seconds[name] for name in best)))
    result |= {"best": best, "ratio": round(float(ratio), 3)}
  return result


def measure(name: str, args: argparse.Namespace) -> dict:
  """A row: forward and training step, beside torch's."""
  row = ROWS[name]
  row = row._replace(batch=args.batch or row.batch)
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(args.weights) / name if args.weights else Path(temporary) / name
    other = Torch(args.torch, name, folder, args.dtype) if args.torch else None
    params, apply = row.read(folder, args.dtype)
    arrays = inputs(row, row.batch, width=name == "unet")
    output = np.asarray(jax.jit(apply)(params, *(arrays[key] for key in ("x", "level", "other"))))
    arrays["target"] = 0.5 * np.roll(output, 1, 0).astype(np.float32)
    result = {"row": name, "dtype": args.dtype, "batch": row.batch}
    calls = [call for call in args.calls.split(",") if row.denoises or call != "sample"]
    if other:
      np.savez(file := Path(temporary) / "inputs.npz", **arrays)
      outputs = {"output": output}
      if "sample" in calls:
        outputs["samples"] = np.asarray(sampler_of(apply)(params, arrays))
      theirs = other.outputs(file, outputs)
      result |= {
        "parameters": other.parameters,
        "differences": {name: relative_difference(each, theirs[name]) for name, each in outputs.items()},
      }
    counts = [n for n in (1, CORES) if row.batch % n == 0 and n <= jax.device_count()]
    variants = args.variants.split(",") if other else []
    timed = {n: ours(params, apply, arrays, n) for n in dict.fromkeys(counts)}
    for call in calls:
      each = {f"jldm {n}": timed[n][call] for n in timed}
      each |= {f"torch {variant}": functools.partial(other.seconds, call, variant) for variant in variants}
      result[call] = compare(each, args.reps, other)
      print(json.dumps({"row": name, "call": call} | result[call]), flush=True)
    if other:
      other.process.stdin.close()
      other.process.wait()
  return result


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument(
    "--rows", default=",".join(ROWS), help=f"a comma list of {', '.join(ROWS)} (default: all)"
  )
  parser.add_argument("--calls", default=",".join(CALLS), help="a comma list (default: %(default)s)")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--batch", type=int, help="examples (default: the row's)")
  parser.add_argument("--reps", type=int, default=10)
  parser.add_argument("--torch", metavar="PYTHON", help="of an environment with torch and diffusers 0.42")
  parser.add_argument("--weights", metavar="FOLDER", help="keeps the networks there, for runs without torch")
  parser.add_argument("--variants", default="eager,channels_last,compiled", help="of torch")
  parser.add_argument("--json", metavar="FILE")
  args = parser.parse_args()
  if not (args.torch or args.weights):
    parser.error("give --torch PYTHON, or the --weights FOLDER of a run that had it")
  sharding.configure(CORES)
  results = [measure(name, args) for name in args.rows.split(",")]
  if args.json:
    Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
  main()
