"""What order every sampler has, and what it is worth at few evaluations:  python -m
benchmarks.samplers RUNS [--workdir W]

  orders    of convergence on a Gaussian and on a mixture of Gaussians, whose denoisers are known
  (tests/samplers/orders.py)
  noise     errors of moments of the samplers that draw noise, on the mixture
  quality   of 1,000 samples of the model in W: the Fréchet distance in the features of
  jldm/metrics/extractors/fashion.py
            to the test split, at 5, 10, 20, 50 evaluations of the network, three seeds
  page      docs/samplers.md and its plot, from what the others left in RUNS

Without --only it does all four.  What is in RUNS is not measured again: a folder for each workdir.
"""

import argparse
from collections.abc import Callable
import functools
import json
from pathlib import Path
import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.recipes import LABELS, SAMPLES, Reference
from jldm.config import presets
from jldm.config.experiment import Sampling
from jldm.diffusion.process import Cosine, Process
from jldm.distributed import sharding
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.inference.model import Model
from jldm.media import images as pictures, sheets
from jldm.metrics.extractors import fashion
from jldm.metrics.frechet import feature_moments, frechet
from jldm.samplers.grid import Grid
from jldm.storage import workdir as workdirs
from tests.samplers import orders

ROOT = Path(__file__).resolve().parents[1]
SEEDS, SCALE = (0, 1, 2), 1.5
STEPS, COUNT = (8, 16, 32), 2**18  # of the noisy samplers on the mixture


class Way(NamedTuple):
  """A sampler as written for `jldm sample`, its grid, and its evaluations in so many steps."""

  sampler: str
  grid: str = "uniform"
  evaluations: Callable[[int], int] = lambda steps: steps


WAYS = {
  "DDIM (Euler)": Way("ddim"),
  "DPM-Solver++ 2M": Way("dpmpp_2m"),
  "DPM-Solver++ 3M": Way("dpmpp_3m"),
  "DPM-Solver++ 2S": Way("dpmpp_2s"),
  "UniPC-2": Way("unipc"),
  "UniPC-3": Way("UniPC(3, lower_order_final=True)"),
  "DEIS-3": Way("deis"),
  "iPNDM": Way("ipndm"),
  "Heun": Way("heun", evaluations=lambda steps: 2 * steps - 1),
  "RK4": Way("rk4", evaluations=lambda steps: 4 * steps - 3),
  "Euler ancestral (DDIM, eta 1)": Way("euler_ancestral"),
  "SDE-DPM-Solver++ 2M": Way("dpmpp_2m_sde"),
  "SDE-DPM-Solver++ 3M": Way("dpmpp_3m_sde"),
  "Heun, churn 0.1": Way("Churn(Heun(), gamma=0.1)", evaluations=lambda steps: 2 * steps - 1),
  "DPM-Solver++ 2M, steps even in log SNR": Way("dpmpp_2m", "exponential"),
  "DPM-Solver++ 2M, Karras' steps": Way("dpmpp_2m", "karras"),
  "DPM-Solver++ 2M, beta steps": Way("dpmpp_2m", "beta"),
}
PLOTTED = (
  "DDIM (Euler)",
  "DPM-Solver++ 2M",
  "UniPC-2",
  "iPNDM",
  "Heun",
  "Euler ancestral (DDIM, eta 1)",
  "SDE-DPM-Solver++ 2M",
)
COUNTED = {  # at so many evaluations, which cost the more the more they are
  5: tuple(WAYS),
  10: tuple(WAYS),
  20: tuple(WAYS),
  50: (
    "DDIM (Euler)",
    "DPM-Solver++ 2M",
    "Euler ancestral (DDIM, eta 1)",
    "SDE-DPM-Solver++ 2M",
  ),  # a choice of them
}


def kept(path: Path, find: Callable[[], Any]) -> Any:
  """What `path` holds, found now if it is not there."""
  if not path.exists():
    found = find()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
  return json.loads(path.read_text())


def measured_orders(process: Process) -> dict[str, list[float]]:
  """name -> order on the Gaussian, order on the mixture."""
  found = {}
  for name, row in orders.DETERMINISTIC.items():
    found[name] = [float(orders.on_gaussian(process, row)), float(orders.on_mixture(process, row))]
    print(f"{name}: {found[name][0]:.2f}, {found[name][1]:.2f}", flush=True)
  return found


def measured_noise(process: Process) -> dict[str, list[float]]:
  """name -> relative error of E|z|^2 at each of STEPS."""
  found = {}
  for name, row in orders.STOCHASTIC.items():
    found[name] = orders.weak_errors(process, row, STEPS, COUNT)
    print(f"{name}: {found[name]}", flush=True)
  return found


def steps_of(way: Way, evaluations: int) -> int:
  """The most steps that evaluate the network so often at most."""
  return max(
    steps for steps in range(1, evaluations + 1) if way.evaluations(steps) <= evaluations or steps == 1
  )


def drawn(workdir: Path, path: Path, way: Way, steps: int, seed: int) -> np.ndarray:
  """1,000 pictures, kept at `path`."""
  if not path.exists():
    model, params = loaded(workdir)
    request = Request(n=len(LABELS), seed=seed, given={"label": LABELS})
    sampling = Sampling(
      sampler=presets.make_sampler(way.sampler),
      steps=steps,
      grid=Grid(way.grid),
      guidance=presets.make_guidance(scale=SCALE),
    )
    images = generate(model, params, request, sampling, batch_size=500, devices=1).data
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.write_npz(path, images, LABELS)
  with np.load(path) as found:
    return found["images"]


def distances(runs: Path, workdir: Path, reference: Reference, name: str, evaluations: int) -> dict[str, Any]:
  """Fréchet distances [seeds] of a way at so many evaluations."""
  way, begun, found = WAYS[name], time.perf_counter(), []
  steps = steps_of(way, evaluations)
  for seed in SEEDS:
    words = re.sub("[^a-z0-9]+", "_", f"{way.sampler} {way.grid}".lower()).strip("_")
    images = drawn(workdir, runs / "drawn" / f"{words}_{steps}_{seed}.npz", way, steps, seed)
    found.append(frechet(feature_moments(fashion.fashion_features(images)), reference.moments))
  print(f"{name}, {steps} steps: {np.mean(found):.3f}  ({time.perf_counter() - begun:.0f} s)", flush=True)
  return {"steps": steps, "evaluations": way.evaluations(steps), "frechet": found}


@functools.cache
def loaded(workdir: Path) -> tuple[Model, dict]:
  return load(workdir)


def floor(data: Any, reference: Reference) -> list[float]:
  """Fréchet distances of 1,000 training pictures, as many draws as seeds."""
  train, rng = data.open(data.train), np.random.default_rng(0)
  rows = rng.permutation(len(train))[: len(SEEDS) * SAMPLES].reshape(len(SEEDS), SAMPLES)
  return [
    frechet(feature_moments(fashion.fashion_features(train[np.sort(part)]["image"])), reference.moments)
    for part in rows
  ]


def measured_quality(runs: Path, workdir: Path) -> dict[str, Any]:
  data = workdirs.read_experiment(workdir).data
  reference = Reference(data, "test")
  ways: dict[str, dict] = {name: {} for name in WAYS}
  for evaluations, names in COUNTED.items():
    for name in names:
      ways[name][str(evaluations)] = distances(runs, workdir, reference, name, evaluations)
  return {"floor": floor(data, reference), "ways": ways}


def order_table(found: dict[str, list[float]]) -> str:
  lines = [
    "| sampler | evaluations a step | expected | on a Gaussian | on a mixture |",
    "|---|---|---|---|---|",
  ]
  for name, (gaussian, mixture) in found.items():
    row = orders.DETERMINISTIC[name]
    lines.append(
      f"| {name}{' †' if row.warm else ''} | {row.evaluations} | {row.order} | {gaussian:.2f} | "
      f"{mixture:.2f} |"
    )
  return "\n".join(lines) + "\n"


def noise_table(found: dict[str, list[float]]) -> str:
  lines = [
    f"| sampler | {' | '.join(f'{steps} steps' for steps in STEPS)} |",
    "|---" * (1 + len(STEPS)) + "|",
  ]
  lines += [
    f"| {name} | {' | '.join(f'{100 * error:+.2f} %' for error in errors)} |"
    for name, errors in found.items()
  ]
  return "\n".join(lines) + "\n"


def quality_table(found: dict[str, Any]) -> str:
  lines = [f"| sampler | {' | '.join(map(str, COUNTED))} |", "|---" * (1 + len(COUNTED)) + "|"]
  mean_and_spread = lambda values: f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
  for name, each in found["ways"].items():
    lines.append(
      f"| {name} | "
      + " | ".join(mean_and_spread(each[str(n)]["frechet"]) if str(n) in each else "" for n in COUNTED)
      + " |"
    )
  return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], path: Path) -> None:
  line = lambda each: tuple(zip(*((np.log2(e["evaluations"]), np.mean(e["frechet"])) for e in each.values())))
  lines = {name: line(found["ways"][name]) for name in PLOTTED}
  lines["real pictures"] = (np.log2([min(COUNTED), max(COUNTED)]), np.full(2, np.mean(found["floor"])))
  picture = sheets.curves(lines, "log2 of evaluations", "Frechet distance", 720, 480)
  pictures.write_png(path, picture, {"what": "quality against evaluations"})


def page(runs: Path, docs: Path) -> None:
  """docs/samplers.md between its markers, and its plot; what is around them is written by hand."""
  read = lambda name: json.loads((runs / f"{name}.json").read_text())
  quality = read("quality")
  plot(quality, docs / "samplers.png")
  tables = {
    "orders": order_table(read("orders")),
    "noise": noise_table(read("noise")),
    "quality": quality_table(quality),
  }
  real = quality["floor"]
  tables["floor"] = (
    f"{SAMPLES:,} training pictures are {np.mean(real):.3f} ± {np.std(real, ddof=1):.3f} from the test "
    f"split.\n"
  )
  path = docs / "samplers.md"
  text = path.read_text()
  for name, table in tables.items():
    before, rest = text.split(f"<!-- {name} -->\n", 1)
    text = f"{before}<!-- {name} -->\n{table}<!-- end -->\n" + rest.split("<!-- end -->\n", 1)[1]
  path.write_text(text)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("runs", type=Path)
  parser.add_argument("--workdir", type=Path, default=Path("runs/fashion_mnist"))
  parser.add_argument("--docs", type=Path, default=ROOT / "docs")
  parser.add_argument("--only", nargs="+", choices=("orders", "noise", "quality", "page"))
  options = parser.parse_args()
  sharding.configure(1)
  jax.config.update("jax_enable_compilation_cache", False)
  parts = {
    "orders": lambda: kept(options.runs / "orders.json", lambda: measured_orders(Cosine())),
    "noise": lambda: kept(options.runs / "noise.json", lambda: measured_noise(Cosine())),
    "quality": lambda: kept(
      options.runs / "quality.json", lambda: measured_quality(options.runs, options.workdir)
    ),
    "page": lambda: page(options.runs, options.docs),
  }
  for name in options.only or parts:
    parts[name]()


if __name__ == "__main__":
  main()
