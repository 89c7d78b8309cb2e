"""`jldm evaluate`: what the samples and the reconstructions of a workdir are worth, beside what real
pictures are.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jldm.config.experiment import Experiment
from jldm.config.presets import guidance_text, make_guidance, override_sampling
from jldm.core.errors import UserError
from jldm.distributed import multihost, sharding
from jldm.evaluation import evaluate
from jldm.evaluation.evaluate import EvaluationSettings, Record
from jldm.evaluation.judge import METRICS, USUAL
from jldm.evaluation.report import NAMES
from jldm.inference.conditions import make_branches
from jldm.inference.load import (
  StagePlace,
  build_model,
  conditioner_of_kind,
  load_needed,
  restore_result,
  sampling_stage,
)
from jldm.interop import safetensors
from jldm.media import images as pictures
from jldm.metrics import perceptual
from jldm.metrics.extractors.extractor import EXTRACTORS
from jldm.models.conditioners.label import ClassLabel
from jldm.samplers.grid import GRIDS
from jldm.storage import workdir as workdirs


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--workdir", required=True, help="a folder that train.py made; its data set must still be there"
  )
  parser.add_argument(
    "--stage", metavar="NAME", default="all", help="what is judged (default: what draws last, and its codec)"
  )
  parser.add_argument(
    "--n", type=int, help="how many pictures (default: the experiment's, 1000 where it does not say)"
  )
  parser.add_argument(
    "--extractor", help=f"what makes features: {', '.join(sorted(EXTRACTORS))} (default: the experiment's)"
  )
  parser.add_argument(
    "--weights", help="the extractor's parameters, a .safetensors file, where it has none of its own"
  )
  parser.add_argument(
    "--lpips", help="weights that jldm convert --kind lpips made: LPIPS of reconstructions as well"
  )
  parser.add_argument(
    "--metrics", default=",".join(USUAL), help=f"a comma list of {', '.join(METRICS)} (default: all but cmmd)"
  )
  parser.add_argument(
    "--best", action="store_true", help="the denoiser that was best while training, not the newest"
  )
  parser.add_argument("--sampler", help="as of jldm sample (default: the experiment's)")
  parser.add_argument("--steps", type=int, help="steps of the sampler (default: the experiment's)")
  parser.add_argument("--grid", help=f"where the steps stand: {', '.join(GRIDS)} (default: the experiment's)")
  parser.add_argument("--guidance-scale", type=float, help="1 is none (default: the experiment's)")
  parser.add_argument(
    "--seed", type=int, default=0, help="of the samples; the same seed gives the same digits"
  )
  parser.add_argument(
    "--reference",
    type=int,
    default=evaluate.MOST_REAL,
    help=f"compare with at most so many training pictures (default: {evaluate.MOST_REAL})",
  )
  parser.add_argument("--data-dir", help="where the data set is (default: the experiment's)")
  parser.add_argument(
    "--batch-size", type=int, default=250, help="pictures at a time; changes memory, not pictures"
  )
  sharding.add_arguments(parser)


def main(args: argparse.Namespace) -> None:
  workdir = Path(args.workdir)
  experiment = override_evaluation(workdirs.read_experiment(workdir), args)
  how = evaluation_how(args, experiment)
  sharding.configure(args.devices, args)
  how = dataclasses.replace(how, devices=sharding.layout_from_args(args))
  loaded = evaluate.open_extractor(experiment.evaluation)
  lpips = perceptual.unpack_lpips(safetensors.read(Path(args.lpips))) if args.lpips else None
  folder = workdirs.evaluation_folder(workdir)
  at, codec_at = judged_stages(experiment, args.stage, workdir)
  codec_step, codec = restore_result(codec_at) if codec_at else (0, load_needed(at)["codec"])
  model = dataclasses.replace(build_model(experiment, at and at.stage.name), codec=codec.model)
  if at:
    step, trained = restore_result(at, best=args.best)
    label = conditioner_of_kind(model, ClassLabel)
    evaluate.check_pictures(model)
    make_branches(model, {label: -1} if label else {}, (), how.n)  # what cannot be drawn is not judged
  real = evaluate.prepare_real_images(experiment, loaded, how, folder)
  if codec_at:
    back = evaluate.reconstruct_held_out(model, codec.params, real, how, lpips)
    name = codec_at.stage.name
    told = {"stage": name, "step": codec_step} | evaluate.judge_reconstructions(back, real, how)
    write_sheet(
      folder / f"{name}-{codec_step}-worst.png", evaluate.worst_reconstructions(back), "worst reconstructions"
    )
    write_results(folder / f"{name}-{codec_step}.json", told)
  if at:
    samples = evaluate.generate_samples(
      model, trained.params | {"codec": codec.params}, real, how, sample_progress
    )
    stem = str(step) if at.stage == sampling_stage(experiment) else f"{at.stage.name}-{step}"
    told = {"stage": at.stage.name, "step": step, "checkpoint": "best" if args.best else "latest"}
    told |= evaluate.judge_samples(model, samples, real, how) | {"classes": real.judge.classes(samples.found)}
    if suspects := evaluate.audit_memorisation(samples, real, how, folder):
      told["memorisation"] = suspects.told
      write_sheet(folder / f"{stem}-nearest.png", suspects.sheet, "samples and their nearest pictures")
    write_results(folder / f"{stem}.json", told)


def judged_stages(
  experiment: Experiment, name: str, workdir: Path
) -> tuple[StagePlace | None, StagePlace | None]:
  """The stage whose samples are judged, and the one whose reconstructions are: of `all`, the last that
  draws and its codec.

  Raises:
    UserError: no such stage.
  """
  stage = sampling_stage(experiment) if name == "all" else experiment.stage(name)
  at = StagePlace(experiment, stage, workdir)
  if stage.makes == "codec":
    return None, at
  return at, at.needed().get("codec") if name == "all" else None


def override_evaluation(experiment: Experiment, args: argparse.Namespace) -> Experiment:
  """With the data's place and what judges it as the command line has them."""
  asked = {
    name: getattr(args, name) for name in ("extractor", "weights", "n") if getattr(args, name) is not None
  }
  if "extractor" in asked:
    asked = {"weights": ""} | asked
  evaluator = dataclasses.replace(experiment.evaluation, **asked)
  data = experiment.data
  if args.data_dir is not None:
    if not hasattr(data, "data_dir"):
      raise UserError(
        f"--data-dir {args.data_dir}: the data, {type(data).__name__}, has no data_dir; leave it out"
      )
    data = dataclasses.replace(data, data_dir=args.data_dir)
  return dataclasses.replace(experiment, evaluation=evaluator, data=data)


def evaluation_how(args: argparse.Namespace, experiment: Experiment) -> EvaluationSettings:
  """What is asked for; UserError for numbers and names that are not legal."""
  metrics = tuple(args.metrics.split(","))
  if unknown := [name for name in metrics if name not in METRICS]:
    raise UserError(
      f"--metrics {args.metrics}: there is no {unknown[0]!r}; expected a comma list of {', '.join(METRICS)}"
    )
  n, few = experiment.evaluation.n, evaluate.FEWEST
  for name, value, least in (
    ("n", n, few),
    ("reference", args.reference, few),
    ("batch_size", args.batch_size, 1),
  ):
    if value < least:
      raise UserError(f"--{name.replace('_', '-')} {value}; expected at least {least}")
  if not 0 <= args.seed < 2**32:
    raise UserError(f"--seed {args.seed}; expected 0 to {2**32 - 1}")
  scale = args.guidance_scale
  sampling = override_sampling(
    experiment.sampling,
    args.sampler,
    args.steps,
    args.grid,
    guidance=None if scale is None else make_guidance(scale=scale),
  )
  same = ("seed", "reference", "batch_size")
  return EvaluationSettings(
    n=n, metrics=metrics, sampling=sampling, **{name: getattr(args, name) for name in same}
  )


def sample_progress(batches: Any) -> Any:
  return tqdm(batches, desc="sample", unit="batch", disable=not multihost.is_primary())


def write_sheet(path: Path, sheet: np.ndarray, what: str) -> None:
  if multihost.is_primary():
    pictures.write_png(path, sheet, {"what": what})


def write_results(path: Path, told: Record) -> None:
  """Writes what was found, and prints it as a table."""
  if not multihost.is_primary():
    return
  evaluate.write_evaluation(path, told | {"versions": evaluate.package_versions()})
  print(f"{told['stage']}, step {told['step']}; {describe_results(told)}")
  print(
    "\n".join(
      results_table(
        told, NAMES | dict.fromkeys(("frechet", "reconstruction_frechet"), told["extractor"]["distance"])
      )
    )
  )
  if audit := told.get("memorisation"):
    verdict = "copies of training pictures are seen" if audit["flagged"] else "no copying is seen"
    print(
      f"{verdict}: {100 * audit['nearer']:.1f} % of samples are nearer to a training picture than to one of as many held-out "
      f"ones; {100 * audit['copies']:.1f} % are nearer to one than 99 in 100 held-out pictures are"
    )
  for name, why in told.get("left_out", {}).items():
    print(f"{name} is left out: {why}")
  print(f"in {path}\n")


def describe_results(told: Record) -> str:
  """One line: of what, compared with what, in whose features."""
  each, among, drawn = told["extractor"], told["reference"], told.get("samples")
  how = "{n} samples, {sampler} in {steps} steps, {guidance}, seed {seed}; "
  how = how.format(**drawn | {"guidance": guidance_text(drawn)}) if drawn else ""
  weights = f"weights {each['weights']}" if each["weights"] else "no weights"
  return (
    f"{how}features of {each['name']} {each['version']} ({weights}), against {among['n']} of {among['split']}"
  )


def results_table(told: Record, names: dict[str, str]) -> list[str]:
  """Lines: each figure with its interval, and that of as many real pictures."""
  rows = [("", "value", "95 % interval", "n", "real against real")]
  for name, each in told["metrics"].items():
    span = f"{each['low']:.4g} to {each['high']:.4g}"
    rows.append(
      (
        names.get(name, name),
        f"{each['value']:.4g}",
        span,
        str(each["n"]),
        f"{each['real']['value']:.4g}" if "real" in each else "",
      )
    )
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return [
    "  ".join(
      cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
    )
    for row in rows
  ]
