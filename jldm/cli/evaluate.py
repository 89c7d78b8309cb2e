"""`jldm evaluate`: metrics of the samples and reconstructions of a workdir, with those of real pictures."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from jldm.cli import options
from jldm.config.experiment import Experiment
from jldm.config.presets import guidance_text, make_guidance, override_sampling
from jldm.core.errors import UserError
from jldm.core.keys import check_seed
from jldm.data.dataset import check_dataset
from jldm.distributed import multihost, sharding
from jldm.evaluation import evaluate
from jldm.evaluation.captions import SCORERS
from jldm.evaluation.choose import fit_to_data
from jldm.evaluation.evaluate import EvaluationSettings, Record
from jldm.evaluation.judge import METRICS, USUAL
from jldm.evaluation.report import figure_names
from jldm.inference.conditions import make_branches
from jldm.inference.load import load_needed, restore_result
from jldm.inference.model import (
  Model,
  StagePlace,
  build_model,
  conditioner_of_kind,
  sampling_stage,
  with_frozen,
)
from jldm.interop import safetensors
from jldm.media import images as pictures
from jldm.metrics import perceptual
from jldm.metrics.extractors.extractor import EXTRACTORS
from jldm.models.conditioners.label import ClassLabel
from jldm.models.conditioners.text import TextConditioner
from jldm.storage import workdir as workdirs


def add_arguments(parser: argparse.ArgumentParser) -> None:
  options.add_shared(
    parser, "--workdir", help="a folder that jldm train made; its data set must still be there"
  )
  options.add_shared(
    parser,
    "--stage",
    default="all",
    help="the stage to judge (default: the last that draws samples, and its codec)",
  )
  options.add_shared(parser, "--best")
  parser.add_argument(
    "--n", type=int, help="number of samples (default: the experiment's, or what the data allow)"
  )
  parser.add_argument(
    "--extractor",
    help=f"the network that computes features: {', '.join(sorted(EXTRACTORS))} "
    "(default: the experiment's, else one that fits the data)",
  )
  parser.add_argument(
    "--weights", help="the extractor's parameters, a .safetensors file, if jldm ships none for it"
  )
  parser.add_argument(
    "--lpips", help="weights that jldm convert --kind lpips made: adds LPIPS of reconstructions"
  )
  parser.add_argument(
    "--metrics",
    help=f"a comma list of {', '.join(METRICS)} (default: all but cmmd, and frechet if pictures are enough)",
  )
  parser.add_argument(
    "--scorer",
    help=f"what judges pictures by their captions: {', '.join(sorted(SCORERS))}, or a function of a file "
    "that --import names (default: the experiment's)",
  )
  parser.add_argument(
    "--captions",
    metavar="SPLIT",
    help="the split whose captions samples are given (default: the experiment's, else the held-out one)",
  )
  options.add_shared(parser, "--sampler", "--steps", "--grid", "--guidance-scale", "--seed")
  parser.add_argument(
    "--reference",
    type=int,
    default=evaluate.MOST_REAL,
    help=f"compare with at most this many training pictures (default: {evaluate.MOST_REAL})",
  )
  parser.add_argument("--data-dir", help="the folder that holds the data set (default: the experiment's)")
  options.add_shared(parser, "--batch-size")
  sharding.add_arguments(parser)


def main(args: argparse.Namespace) -> None:
  workdir = Path(args.workdir)
  experiment = override_evaluation(workdirs.read_experiment(workdir), args)
  settings = settings_from_args(args, experiment)
  sharding.configure(args.devices, args)
  settings = dataclasses.replace(settings, devices=sharding.layout_from_args(args))
  folder = workdirs.evaluation_folder(workdir)
  at, codec_at = stages_to_judge(experiment, args.stage, workdir)
  refuse_unused(args, at, codec_at)
  model = build_model(experiment, at and at.stage.name)
  if at:
    evaluate.check_pictures(model)
  free = {name for name in ("n", "metrics") if getattr(args, name) is None}
  loaded, settings, chosen = fit_to_data(experiment, settings, free)
  if multihost.is_primary():
    print_notes(chosen, workdirs.data_differences(workdir, experiment.data.fingerprint()))
  lpips = perceptual.unpack_lpips(safetensors.read(Path(args.lpips))) if args.lpips else None
  options.check_writable(folder)
  frozen = load_needed(at) if at else {}
  codec_step, codec = restore_result(codec_at) if codec_at else (0, frozen["codec"])
  model = dataclasses.replace(model, codec=codec.model)
  if at:
    step, denoiser = restore_result(at, frozen, best=bool(args.best))
    check_conditions(model, experiment, settings.n)
  real = evaluate.prepare_real_images(experiment, loaded, settings, folder)

  if codec_at:
    reconstructions = evaluate.reconstruct_held_out(model, codec.params, real, settings, lpips)
    stem = f"{codec_at.stage.name}-{codec_step}"
    record = {"stage": codec_at.stage.name, "step": codec_step}
    record |= evaluate.judge_reconstructions(reconstructions, real, settings)
    worst = evaluate.worst_reconstructions(reconstructions)
    write_sheet(folder / f"{stem}-worst.png", worst, "worst reconstructions")
    write_results(folder / f"{stem}.json", record)

  if at:
    params = with_frozen(model, denoiser.params, frozen)
    samples = evaluate.generate_samples(model, params, real, settings, options.progress_bar)
    stem = str(step) if at.stage == sampling_stage(experiment) else f"{at.stage.name}-{step}"
    record = {"stage": at.stage.name, "step": step, "checkpoint": "best" if args.best else "latest"}
    record |= evaluate.judge_samples(model, samples, real, settings)
    record["classes"] = real.judge.compare_classes(samples.features)
    if audit := evaluate.audit_memorisation(samples, real, settings, folder):
      record["memorisation"] = audit.record
      write_sheet(folder / f"{stem}-nearest.png", audit.sheet, "samples and their nearest pictures")
    write_results(folder / f"{stem}.json", record)


def check_conditions(model: Model, experiment: Experiment, n: int) -> None:
  """Raises a UserError if the model needs what samples of an evaluation are not given, or reads no captions
  and there is a scorer.
  """
  label, text = (conditioner_of_kind(model, kind) for kind in (ClassLabel, TextConditioner))
  if experiment.evaluation.scorer and text is None:
    raise UserError(f"--scorer {experiment.evaluation.scorer}; expected none: this model reads no captions")
  make_branches(model, ({label: -1} if label else {}) | ({text: ""} if text else {}), (), n)


def print_notes(chosen: str, changed: list[str]) -> None:
  """Prints what was chosen for the data, and how they differ from those that the run was trained on."""
  if chosen:
    print(chosen)
  if changed:
    print(f"the data are not those that the run was trained on: {'; '.join(changed[:3])}")


def stages_to_judge(
  experiment: Experiment, name: str, workdir: Path
) -> tuple[StagePlace | None, StagePlace | None]:
  """The stage whose samples are judged and the one whose reconstructions are; None for neither.

  The name `all` means the last stage that draws samples, and its codec.

  Raises:
    UserError: no such stage.
  """
  stage = sampling_stage(experiment) if name == "all" else experiment.stage(name)
  at = StagePlace(experiment, stage, workdir)
  if stage.makes == "codec":
    return None, at
  return at, at.needed().get("codec") if name == "all" else None


def refuse_unused(args: argparse.Namespace, at: StagePlace | None, codec_at: StagePlace | None) -> None:
  """Raises a UserError for options of samples or of reconstructions where there are none."""
  drawn = ("sampler", "steps", "grid", "guidance_scale", "best")
  rules = [options.Only(name, lambda _: at, "a stage that draws samples") for name in drawn]
  rules.append(options.Only("lpips", lambda _: codec_at, "a stage that makes a codec, or all"))
  options.settle(args, tuple(rules))


def override_evaluation(experiment: Experiment, args: argparse.Namespace) -> Experiment:
  """The experiment with the data folder and the evaluation that the options choose."""
  names = ("extractor", "weights", "n", "scorer", "captions")
  chosen = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
  if "extractor" in chosen:
    chosen = {"weights": ""} | chosen  # the weights of the experiment belong to its own extractor
  evaluator = dataclasses.replace(experiment.evaluation, **chosen)
  data = experiment.data
  if args.data_dir is not None:
    if check_dataset(data).data_dir is None:
      raise UserError(
        f"--data-dir {args.data_dir}: the data, {type(data).__name__}, has no data_dir; leave it out"
      )
    data = dataclasses.replace(data, data_dir=args.data_dir)
  return dataclasses.replace(experiment, evaluation=evaluator, data=data)


def settings_from_args(args: argparse.Namespace, experiment: Experiment) -> EvaluationSettings:
  """The settings that the options choose; UserError for numbers and names that are not legal."""
  metrics = USUAL if args.metrics is None else tuple(args.metrics.split(","))
  if unknown := [name for name in metrics if name not in METRICS]:
    raise UserError(
      f"--metrics {args.metrics}: there is no {unknown[0]!r}; expected a comma list of {', '.join(METRICS)}"
    )
  n = experiment.evaluation.n
  options.check_at_least(evaluate.FEWEST, n=n, reference=args.reference)
  options.check_at_least(1, batch_size=args.batch_size)
  check_seed(args.seed, "--seed")
  scale = args.guidance_scale
  sampling = override_sampling(
    experiment.sampling,
    args.sampler,
    args.steps,
    args.grid,
    guidance=None if scale is None else make_guidance(scale=scale),
  )
  return EvaluationSettings(
    n=n,
    metrics=metrics,
    sampling=sampling,
    seed=args.seed,
    reference=args.reference,
    batch_size=args.batch_size,
  )


def write_sheet(path: Path, sheet: np.ndarray, what: str) -> None:
  if multihost.is_primary():
    pictures.write_png(path, sheet, {"what": what})


def write_results(path: Path, record: Record) -> None:
  """Writes the results, and prints them as a table."""
  if not multihost.is_primary():
    return
  evaluate.write_evaluation(path, record | {"versions": evaluate.package_versions()})
  print(f"{record['stage']}, step {record['step']}; {describe_results(record)}")
  print("\n".join(results_table(record, figure_names(record))))
  if audit := record.get("memorisation"):
    verdict = "copies of training pictures are seen" if audit["flagged"] else "no copying is seen"
    print(
      f"{verdict}: {100 * audit['nearer']:.1f} % of samples are nearer to a training picture "
      f"than to one of as many held-out ones; {100 * audit['copies']:.1f} % are nearer to one "
      "than 99 in 100 held-out pictures are"
    )
  for name, reason in record.get("left_out", {}).items():
    print(f"{name} is left out: {reason}")
  print(f"in {path}\n")


def describe_results(record: Record) -> str:
  """One line: the samples, the features, and what they are compared with."""
  extractor, reference, samples = record["extractor"], record["reference"], record.get("samples")
  sampling = ""
  if samples:
    line = "{n} samples, {sampler} in {steps} steps, {guidance}, seed {seed}; "
    sampling = line.format(**samples | {"guidance": guidance_text(samples)})
  weights = f"weights {extractor['weights']}" if extractor["weights"] else "no weights"
  return (
    f"{sampling}features of {extractor['name']} {extractor['version']} ({weights}), "
    f"against {reference['n']} of {reference['split']}"
  )


def results_table(record: Record, names: dict[str, str]) -> list[str]:
  """Lines: each metric with its interval, and its value for as many real pictures."""
  rows = [("", "value", "95 % interval", "n", "real against real")]
  for name, each in record["metrics"].items():
    interval = f"{each['low']:.4g} to {each['high']:.4g}"
    real = f"{each['real']['value']:.4g}" if "real" in each else ""
    rows.append((names.get(name, name), f"{each['value']:.4g}", interval, str(each["n"]), real))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  align = lambda i, cell: cell.rjust(widths[i]) if i else cell.ljust(widths[i])
  return ["  ".join(align(i, cell) for i, cell in enumerate(row)) for row in rows]
