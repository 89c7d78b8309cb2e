"""The autoencoders of configs/photos_{kl,vq}.py on held-out crops:  python -m benchmarks.autoencoders
runs/photos [--docs docs]

Expects `jldm prepare photos --size 64` and `jldm prepare photos --size 96x64 --name photos_tall` in
--data-dir.  Trains what is not finished, one row after another on one CPU device (pin it to a core:
`taskset -c 0`), measures PSNR, SSIM and the codes chosen over all held-out crops, and writes
autoencoders.md and a sheet of reconstructions a row to --docs.
"""

import argparse
import json
from pathlib import Path
import shutil
import time

import jax
import numpy as np

from jldm.cli.train import load_config
from jldm.config.experiment import Experiment
from jldm.config.override import override
from jldm.core.trees import count
from jldm.data.batches import in_order
from jldm.distributed import sharding
from jldm.evaluation.judge import measure_reconstructions
from jldm.inference.load import load_finished
from jldm.inference.model import build_model, find_stage
from jldm.media import images as pictures, sheets
from jldm.models.autoencoders.quantize import perplexity
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import variables
from jldm.runs import train as training

ROOT = Path(__file__).resolve().parents[1]
F8 = {"autoencoder.objective.network.patch": "4", "autoencoder.objective.network.widths": "(64, 128)"}
TALL = {"data.name": "photos_tall", "data.height": "96"}
ROWS = {
  f"{kind} f{factor}{', 96x64' if tall else ''}": (
    f"photos_{kind.lower()}",
    (F8 if factor == 8 else {}) | tall,
  )
  for tall in ({}, TALL)
  for kind in ("KL", "VQ")
  for factor in (4, 8)
}
SHOWN = (0, 27, 55, 83, 111, 139)  # of the held-out crops, on a sheet


def experiment(name: str, data_dir: str) -> Experiment:
  config, changes = ROWS[name]
  found = load_config(str(ROOT / "configs" / f"{config}.py"))
  for path, text in (changes | {"data.data_dir": data_dir}).items():
    found = override(found, path, text)
  return found


def slug(name: str) -> str:
  return name.lower().replace(",", "").replace(" ", "_")


def train(workdir: Path, found: Experiment) -> dict:
  """CPU-seconds of the training, compilation and encoding of the latents included; one that was cut
  short starts anew.
  """
  cost = workdir / "cost.json"
  if not cost.exists():
    shutil.rmtree(workdir, ignore_errors=True)
    start, wall = time.process_time(), time.perf_counter()
    training.train(found, workdir, ("autoencoder",), devices=1)
    cost.write_text(
      json.dumps({"cpu_seconds": time.process_time() - start, "wall_seconds": time.perf_counter() - wall})
    )
  return json.loads(cost.read_text())


def measure(folder: Path, name: str, data_dir: str, docs: Path) -> dict:
  """One row of the table, and its sheet."""
  found, workdir = experiment(name, data_dir), folder / slug(name)
  cost, model = train(workdir, found), build_model(found)
  codec, network, data = (
    load_finished(find_stage(workdir, "autoencoder")).params,
    model.codec.network,
    found.data,
  )
  held_out = data.open(data.held_out)

  @jax.jit
  def reconstruct(images):
    return model.codec.decode(codec, model.codec.encode(codec, {"image": images}).mean)

  batches = [(codecs.pixels(batch["image"]), n) for batch, n in in_order(held_out, 60)]
  values, _ = measure_reconstructions(reconstruct, batches)
  picked = held_out[np.array(SHOWN)]["image"]
  sheet = sheets.stack_pairs(picked, pictures.to_uint8(reconstruct(codecs.pixels(picked))), len(SHOWN))
  pictures.write_png(docs / f"autoencoder_{slug(name)}.png", sheet, {"what": "reconstructions", "row": name})
  h, w, c = model.latent_shape
  row = {
    "name": name,
    "latents": f"{h}x{w}x{c}",
    "parameters": count(codec["params"]),
    "steps": found.stage("autoencoder").steps,
    "batch_size": found.stage("autoencoder").batch_size,
    **{name: float(each.mean()) for name, each in values.items()},
    **cost,
  }
  if hasattr(network, "quantizer"):
    choose = jax.jit(
      lambda images: network.apply(
        variables(codec), model.codec.encode(codec, {"image": images}).mean, method="quantize"
      )[1]
    )
    codes = np.concatenate([np.asarray(choose(images))[:n].reshape(-1) for images, n in batches])
    counts = np.bincount(codes, minlength=network.quantizer.size)
    row |= {
      "codes": network.quantizer.size,
      "usage": float((counts > 0).mean()),
      "perplexity": float(perplexity(counts)),
    }
  return row


def table(rows: list[dict]) -> str:
  lines = [
    "| autoencoder | latents | parameters | PSNR, dB | SSIM | codes used | perplexity | steps | "
    "CPU-seconds |",
    "|---|---|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    used = (
      f"{100 * row['usage']:.0f} % of {row['codes']} | {row['perplexity']:.0f}" if "codes" in row else "| "
    )
    lines.append(
      f"| {row['name']} | {row['latents']} | {row['parameters'] / 1e3:.0f} k | {row['psnr']:.2f} | "
      f"{row['ssim']:.3f} | {used} "
      f"| {row['steps']} x {row['batch_size']} | {row['cpu_seconds']:.0f} |"
    )
  return "\n".join(lines) + "\n"


def page(rows: list[dict], held_out: str) -> str:
  sheets = "\n".join(
    f"**{row['name']}**: originals, and below each its "
    f"reconstruction\n\n![{row['name']}](autoencoder_{slug(row['name'])}.png)\n"
    for row in rows
  )
  return f"""# Autoencoders on photographs

KL and VQ at factors 4 and 8, trained by `configs/photos_kl.py` and `configs/photos_vq.py` on crops of six photographs
that ship with scikit-learn and scikit-image: of 64x64, and of 96x64 (height and width) where a row says so.  Each is
measured on {held_out} of its size that share no pixel with a training crop: they come from a band in the middle of each
photograph (`jldm/data/photos.py`).  Written by `python -m benchmarks.autoencoders runs/photos`.

{table(rows)}
PSNR and SSIM are means over the held-out crops, reconstructed by the averaged parameters from the posterior's mean.  Codes
used: the share of the codebook that any place of any held-out crop chooses; perplexity: exp of the entropy of those choices,
at most the number of codes.  CPU-seconds are of one pinned core of a shared machine, compilation and the encoding of the
training set included.

- These are small networks at the start of their training: minutes of one core each.  They show that both kinds learn
  and that the codebook stays alive, not what either can reach.
- The photographs are few, so held-out crops have the colours and the light of the training crops.

{sheets}
china and flower: D. Buechele and vultilion, CC BY 2.0; chelsea and coffee: S. van der Walt and R. Michetti, CC0;
astronaut (NASA) and rocket (SpaceX): public domain.
"""


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=Path)
  parser.add_argument("--data-dir", default="data")
  parser.add_argument("--docs", type=Path, default=ROOT / "docs")
  parser.add_argument(
    "--only", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="ROW", help=" / ".join(ROWS)
  )
  options = parser.parse_args()
  sharding.configure(1)
  rows = []
  for name in options.only:
    rows.append(measure(options.folder, name, options.data_dir, options.docs))
    print(table(rows), flush=True)
    (options.folder / "table.json").write_text(json.dumps(rows, indent=2) + "\n")
  data = experiment(options.only[0], options.data_dir).data
  held_out = f"{len(data.open(data.held_out))} crops"
  (options.docs / "autoencoders.md").write_text(page(rows, held_out))


if __name__ == "__main__":
  main()
