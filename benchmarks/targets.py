"""Networks and targets on the same latents:  python -m benchmarks.targets runs/targets [--steps 1100]
[--only U-Net/eps …]

Trains the autoencoder of configs/digits.py once and, for every row, a denoiser of one network and
one target in its latents; draws 1,000 digits of each with DPM-Solver++ 2M (20 steps, no guidance,
seed 0) and prints a table, also kept as table.md and table.json in the folder.  What is finished is
not trained again.
"""

import argparse
import dataclasses
import itertools
import json
from pathlib import Path
import shutil

import numpy as np

from benchmarks.digits import class_agreement, std_ratio
from jldm.cli.train import load_config
from jldm.config.experiment import Experiment
from jldm.core.trees import count
from jldm.diffusion.process import EDM, Cosine, Discrete, Flow
from jldm.diffusion.target import Precondition, Predict
from jldm.diffusion.times import LogitNormal, LogNormalSigma, Uniform
from jldm.diffusion.weighting import TargetWeighting
from jldm.distributed import sharding
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.media import images as pictures, sheets
from jldm.models.denoisers.dit import DiT
from jldm.models.denoisers.unet import UNet
from jldm.nn.transformer import ModulatedBlock
from jldm.runs.train import train
from jldm.samplers.guidance import ClassifierFree
from jldm.storage import workdir as workdirs

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {
  "DiT": DiT(block=ModulatedBlock(heads=4), patch=2, width=192, depth=4, classes=10, unroll=4),
  "U-Net": UNet(widths=(48, 96), resnets=1, attention=(False, True), heads=4, classes=10, groups=16),
}
TARGETS = {
  "eps": dict(process=Discrete(), parametrization=Predict("eps"), times=Uniform()),  # alpha(1) = 0.068
  "v": dict(process=Cosine(), parametrization=Predict("v"), times=Uniform()),
  "flow": dict(process=Flow(), parametrization=Predict("flow"), times=LogitNormal()),
  "x0": dict(
    process=Flow(),
    parametrization=Predict("x0"),
    times=LogitNormal(),
    weighting=TargetWeighting("flow", 400.0),
  ),
  "EDM": dict(process=EDM(), parametrization=Precondition(), times=LogNormalSigma(-0.5, 1.2)),
}


def experiment(network: str, target: str, steps: int) -> Experiment:
  base = load_config(str(ROOT / "configs" / "digits.py"))
  stage = base.stage("denoiser")
  objective = dataclasses.replace(stage.objective, network=NETWORKS[network], **TARGETS[target])
  stage = dataclasses.replace(
    stage, objective=objective, steps=steps, save_every_steps=steps, picture_every_steps=steps
  )
  return base.with_stage(stage)


def measure(folder: Path, network: str, target: str, steps: int) -> dict:
  """One row of the table, trained now or before."""
  workdir, found = folder / f"{network}-{target}", experiment(network, target, steps)
  workdirs.claim_workdir(workdir, found)
  for part in ("autoencoder", "latents", "conditions"):
    shutil.copytree(folder / "codec" / part, workdir / part, dirs_exist_ok=True)
  train(found, workdir, ("denoiser",))
  model, params = load(workdir)
  labels = np.repeat(np.arange(10), 100)
  sampling = dataclasses.replace(model.sampling, guidance=ClassifierFree(1.0))
  images = generate(model, params, Request(n=len(labels), given={"label": labels}), sampling).data
  shown = np.concatenate([np.flatnonzero(labels == c)[:8] for c in range(10)])
  what = {"what": "samples", "network": network, "target": target}
  pictures.write_png(
    folder / f"{network}-{target}.png", sheets.class_rows(images[shown], labels[shown], 8), what
  )
  return {
    "network": network,
    "target": target,
    "parameters": count(params["denoiser"]),
    "class_agreement": class_agreement(images, labels),
    "std_ratio": std_ratio(images, labels),
  }


def table(rows: list[dict]) -> str:
  lines = [
    "| network | target | parameters | class agreement | per-class std ratio |",
    "|---|---|---|---|---|",
  ]
  for row in rows:
    numbers = (
      f"{row['parameters'] / 1e6:.1f} M | {100 * row['class_agreement']:.1f} % | {row['std_ratio']:.2f}"
    )
    lines.append(f"| {row['network']} | {row['target']} | {numbers} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=Path)
  parser.add_argument("--steps", type=int, default=1100)
  parser.add_argument("--only", nargs="+", metavar="NETWORK/TARGET", help="e.g. U-Net/eps DiT/flow")
  options = parser.parse_args()
  sharding.configure()
  names = [f"{network}/{target}" for network, target in itertools.product(NETWORKS, TARGETS)]
  if unknown := set(options.only or ()) - set(names):
    parser.error(f"{', '.join(sorted(unknown))}; expected some of {', '.join(names)}")
  train(experiment("DiT", "flow", options.steps), options.folder / "codec", ("autoencoder",))
  rows = []
  for name in options.only or names:
    rows.append(measure(options.folder, *name.split("/"), options.steps))
    print(table(rows), flush=True)
    (options.folder / "table.json").write_text(json.dumps(rows, indent=2) + "\n")
    (options.folder / "table.md").write_text(table(rows))


if __name__ == "__main__":
  main()
