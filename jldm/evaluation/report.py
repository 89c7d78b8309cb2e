"""Builds W/report.html, one page about a run: what it learned and how fast, its samples, and their metrics.

Everything is read from the workdir, except for a few samples that are drawn for the page.  Sections without
data are left out.
"""

import json
from pathlib import Path
import re
from typing import Any

import numpy as np

from jldm.config.experiment import Experiment, Stage
from jldm.config.presets import guidance_text, sampling_to_dict
from jldm.config.serialize import to_data
from jldm.core.errors import UserError
from jldm.data.dataset import check_dataset
from jldm.evaluation import page
from jldm.evaluation.judge import Record
from jldm.evaluation.page import Curve
from jldm.evaluation.records import read_evaluations, read_metrics, read_sheet
from jldm.inference.generate import Request, generate
from jldm.inference.load import load
from jldm.inference.model import conditioner_of_kind
from jldm.media import images as pictures, sheets
from jldm.metrics.extractors.extractor import EXTRACTORS
from jldm.models.conditioners.label import ClassLabel
from jldm.storage import workdir as workdirs
from jldm.storage.class_names import read_class_names

MOST_SHEETS = 6  # sheets of a stage, over time
PREVIEWS, MOST_DRAWN = 8, 10  # steps and pictures of the denoising trajectory
NO_CHART = {
  "stage",
  "step",
  "skipped",
  "images_per_second",
  "loss",
  "grad_norm",
  "psnr",
}  # no chart of their own
HELD_OUT_LOSS = "held_out_loss"  # and "held_out_loss/t0.1" by noise level
FURTHER_TILES = ("agreement", "psnr", "reconstruction_frechet")
BLIND = (
  "precision",
  "recall",
  "density",
  "coverage",
)  # metrics that look perfect if features do not see a fault
NAMES = {  # of metrics
  "frechet": "Fréchet distance",
  "kid": "kernel distance (KID)",
  "cmmd": "CMMD",
  "precision": "precision",
  "recall": "recall",
  "density": "density",
  "coverage": "coverage",
  "agreement": "class agreement",
  "inception_score": "inception score",
  "duplicates": "duplicates",
  "psnr": "PSNR, dB",
  "ssim": "SSIM",
  "lpips": "LPIPS",
  "reconstruction_frechet": "Fréchet distance",
  "reconstruction_kid": "kernel distance (KID)",
}
MEANINGS = {  # of metrics
  "frechet": "how far the samples' features lie from real ones', 0 is best",
  "kid": "the same by a kernel, without a bias for few pictures",
  "cmmd": "the same for the directions of features",
  "precision": "share of samples that look real",
  "recall": "share of real pictures that the samples come near",
  "density": "how densely samples lie where real pictures do",
  "coverage": "share of real pictures with a sample nearby",
  "agreement": "share of samples of the requested class",
  "inception_score": "whether classes are recognisable and varied",
  "duplicates": "share of samples with a twin",
  "psnr": "similarity to the original, pixel by pixel",
  "ssim": "similarity in local structure",
  "lpips": "distance for a network trained on human judgements",
  "reconstruction_frechet": "how far reconstructions lie from real pictures",
  "reconstruction_kid": "the same by a kernel",
}


def build_report(workdir: Path, devices: int | None = None) -> str:
  """The page of a workdir.

  Raises:
    UserError: not a workdir.
  """
  experiment = workdirs.read_experiment(workdir)
  logged, evaluations = list(read_metrics(workdir / "metrics.jsonl")), read_evaluations(workdir)
  (denoiser, codec), names = shown_stages(experiment), read_class_names(workdir)
  newest = [last for name in (denoiser, codec) if (last := last_evaluation(evaluations, name))]
  parts = [
    summary_tiles(newest),
    sheets_section(workdir, denoiser, "Samples over time", "One seed, one noise: only the network changes."),
    denoising_section(workdir, devices, names),
    figures_section(last_evaluation(evaluations, denoiser), "Metrics of samples", names),
    neighbours_section(workdir, evaluations, denoiser),
    over_time_section(evaluations, denoiser),
    sheets_section(workdir, codec, "Reconstructions", "Held-out pictures, each above its reconstruction."),
    figures_section(last_evaluation(evaluations, codec), "Metrics of reconstructions", names),
    worst_section(workdir, evaluations, codec),
    *(
      training_section(stage, [row for row in logged if row.get("stage") == stage.name])
      for stage in experiment.stages
    ),
    page.section("The experiment", page.folded("as it was run", json.dumps(to_data(experiment), indent=2))),
    versions_section(newest),
  ]
  title = "data of another workdir" if experiment.data is None else check_dataset(experiment.data).title()
  lead = f"Trained on {title}, in {workdir.resolve()}"
  return page.html_page(f"{workdir.resolve().name}: a run of jldm", lead, filter(None, parts))


def shown_stages(experiment: Experiment) -> tuple[str | None, str | None]:
  """The names of the last denoiser and of the last codec; None for a kind that the experiment lacks."""
  return tuple(stage and stage.name for stage in map(experiment.last, ("denoiser", "codec")))


def last_evaluation(evaluations: list[Record], stage: str | None) -> Record | None:
  """The last evaluation of a stage."""
  return next((record for record in reversed(evaluations) if record["stage"] == stage), None)


def summary_tiles(newest: list[Record]) -> str:
  """The main metrics of the newest evaluations."""
  facts = []
  for record in newest:
    shown = ("frechet", *(() if blindness(record) else ("recall",)), *FURTHER_TILES)
    for name in shown:
      if score := record["metrics"].get(name):
        title = figure_names(record)[name]
        title += " of reconstructions" if name == "reconstruction_frechet" else ""
        real = score.get("real")
        scale = f"real pictures {real['value']:.3g}" if real else f"of {score['n']:,} pictures"
        span = f"{score['low']:.3g} to {score['high']:.3g}; {scale}"
        facts.append((title, f"{score['value']:.3g}", span))
  return page.tiles(facts) if facts else ""


def training_section(stage: Stage, logged: list[dict]) -> str:
  """Losses, step times and held-out quality of a stage."""
  if not logged:
    return ""
  of = lambda key: curve_of([(row["step"], row[key]) for row in logged if key in row])
  times = [
    (row["step"], 1000 * stage.batch_size / row["images_per_second"])
    for row in logged
    if row.get("images_per_second")
  ]
  keys = sorted({key for row in logged for key in row} - NO_CHART)
  terms = [key for key in keys if not key.startswith(("held_out_", "evaluation_"))]
  terms = [key for key in terms if len(set(of(key).y)) > 1 and of(key) != of("loss")]
  levels = [key for key in keys if key.startswith(f"{HELD_OUT_LOSS}/t")]
  held_out = {"mean": HELD_OUT_LOSS} | {key.replace(f"{HELD_OUT_LOSS}/t", "t = "): key for key in levels}
  charts = [
    page.chart("Loss", {"loss": of("loss")}, "mean since the last line"),
    *(page.chart(key.replace("_", " "), {key: of(key)}, "") for key in terms),
    page.chart("PSNR", {"training": of("psnr"), "held out": of("held_out_psnr")}, "dB"),
    page.chart("Held-out loss", {name: of(key) for name, key in held_out.items()}, ""),
    page.chart("Gradient norm", {"norm": of("grad_norm")}, ""),
    page.chart(
      "Step time", {"time": curve_of(times[1:])}, "milliseconds, without the first line, which compiles"
    ),
  ]
  skipped = sum(int(row.get("skipped", 0)) for row in logged)
  note = f"{logged[-1]['step']:,} of {stage.steps:,} steps of {stage.batch_size} pictures"
  note += f"; {skipped} updates were skipped because they were not finite" if skipped else ""
  return page.section(f"Training: {stage.name}", page.side_by_side(*charts), note=note)


def curve_of(points: list[tuple[float, float]]) -> Curve:
  """Points (x, y) as a curve."""
  return Curve(*zip(*points)) if points else Curve((), ())


def evenly_spaced(items: list[Any], most: int) -> list[Any]:
  """At most so many of the items, evenly spaced, with the first and the last."""
  chosen = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
  return [items[i] for i in np.unique(chosen)]


def sheets_section(workdir: Path, stage: str | None, title: str, note: str) -> str:
  """Some of the sheets that a stage wrote while training."""
  sheets = sorted(
    (int(match[1]), path)
    for path in (workdir / "images").glob(f"{stage}-*.png")
    if (match := re.fullmatch(rf"{stage}-(\d+)", path.stem))
  )
  if not sheets:
    return ""
  shown = evenly_spaced(sheets, MOST_SHEETS)
  figures = [page.figure(read_sheet(path), f"step {step:,}") for step, path in shown]
  return page.section(title, page.side_by_side(*figures), note=note)


def denoising_section(workdir: Path, devices: int | None, names: list[str]) -> str:
  """The sampler's estimates of a few pictures, step by step."""
  title = "Denoising"
  try:
    model, params = load(workdir)
    if model.parts:
      raise UserError(f"samples have several parts ({', '.join(model.parts)}), which no sheet shows")
    name = conditioner_of_kind(model, ClassLabel)
    count = MOST_DRAWN if name is None else min(model.conditioners[name].classes, MOST_DRAWN)
    request = Request(n=count, given={} if name is None else {name: np.arange(count)}, estimates=PREVIEWS)
    samples, estimates, _ = generate(model, params, request, devices=devices)
  except UserError as error:
    return page.section(title, page.paragraph(f"Not drawn: {error}"))
  rows = [np.concatenate([steps, sample[None]]) for steps, sample in zip(estimates, samples)]
  sheet = sheets.titled_rows(rows, [] if name is None else sheets.row_titles(np.arange(count), names))
  sampling = sampling_to_dict(model.sampling)
  note = (
    f"Each row is one picture, from noise on the left: the estimates at {PREVIEWS} of the steps, and the "
    f"sample. "
    f"{sampling['sampler']}, {sampling['steps']} steps, {guidance_text(sampling)}, seed 0."
  )
  return page.section(
    title, page.figure(pictures.encode_png(sheet, {"what": "denoising"}), "left to right"), note=note
  )


def figures_section(record: Record | None, title: str, names: list[str]) -> str:
  """All metrics of an evaluation, with their intervals and those of real pictures."""
  if record is None:
    return ""
  lines, marks = [], []
  for name, score in record["metrics"].items():
    real = score.get("real")
    lines.append(
      (
        figure_names(record).get(name, name),
        f"{score['value']:.4g}",
        f"{score['low']:.4g} to {score['high']:.4g}",
        f"{real['value']:.4g}" if real else "",
        f"{score['n']:,}",
      )
    )
    spans = [(part["low"], part["value"], part["high"]) for part in (score, real) if part]
    marks.append(page.whisker(*spans[0], *spans[1:]))
  head = ("", "value", "95 % interval", "real against real", "n", "intervals, real below")
  unseen = blindness(record)
  remarks = [
    MEANINGS.get(name, "") + (f"; these features do not see {unseen}" if unseen and name in BLIND else "")
    for name in record["metrics"]
  ]
  parts = [page.html_table(head, lines, remarks, marks), class_table(record.get("classes", {}), names)]
  parts += [
    page.paragraph(f"{NAMES.get(name, name)} is left out: {reason}.")
    for name, reason in record.get("left_out", {}).items()
  ]
  return page.section(title, *parts, note=f"Step {record['step']:,}. {describe_conditions(record)}")


def blindness(record: Record) -> str:
  """What of pictures the features of an evaluation do not see; nothing if it is not known."""
  name = record["extractor"]["name"]
  return EXTRACTORS[name].blind if name in EXTRACTORS else ""


def figure_names(record: Record) -> dict[str, str]:
  """NAMES, with the Fréchet distance called as the extractor's weights allow."""
  distance = record["extractor"].get("distance", NAMES["frechet"])
  by_caption = {name: name.replace("_", " ") for name in record["metrics"] if "caption_" in name}
  return by_caption | NAMES | dict.fromkeys(("frechet", "reconstruction_frechet"), distance)


def describe_conditions(record: Record) -> str:
  """All that the metrics depend on, as text."""
  extractor, reference, real = record["extractor"], record["reference"], record["real"]
  weights = f"weights {extractor['weights']}" if extractor["weights"] else "no weights"
  text = (
    f"Features of {extractor['name']} {extractor['version']} ({extractor['preprocessing']}; {weights}), "
    f"against "
    f"{reference['n']:,} pictures of {reference['split']}; real pictures are {real['n']:,} of "
    f"{real['split']}."
  )
  if samples := record.get("samples"):
    sampling = "{n:,} samples, {sampler} in {steps} steps on the grid {grid}, {guidance}, seed {seed}. "
    text = sampling.format(**samples | {"guidance": guidance_text(samples)}) + text
  return text


def class_table(classes: dict[str, Record], class_names: list[str]) -> str:
  """The metrics of each class, by its name if the classes have names."""
  if not classes:
    return ""
  names = list(next(iter(classes.values())))
  lines = []
  for label, scores in classes.items():
    values = [f"{scores[name]['value']:.3g}" if name in scores else "" for name in names]
    title = class_names[int(label)] if label.isdecimal() and int(label) < len(class_names) else label
    lines.append((title, *values, *(str(score["n"]) for score in list(scores.values())[:1])))
  return page.html_table(("class", *(NAMES.get(name, name) for name in names), "n"), lines)


def over_time_section(evaluations: list[Record], stage: str | None) -> str:
  """Metrics over the steps, from all evaluations with the settings of the last one."""
  of_stage = [record for record in evaluations if record["stage"] == stage]
  alike = [
    record
    for record in of_stage
    if all(record.get(key) == of_stage[-1].get(key) for key in ("samples", "extractor", "reference"))
  ]
  if len(alike) < 2:
    return ""
  charts = []
  for name in alike[-1]["metrics"]:
    points = [(record["step"], record["metrics"][name]) for record in alike if name in record["metrics"]]
    steps, scores = zip(*points)
    samples = Curve(steps, *([score[end] for score in scores] for end in ("value", "low", "high")))
    real = curve_of([(step, score["real"]["value"]) for step, score in points if "real" in score])
    charts.append(page.chart(NAMES.get(name, name), {"samples": samples, "real pictures": real}, ""))
  return page.section(
    "Metrics over time", page.side_by_side(*charts), note="All samples have the same seed and settings."
  )


def worst_section(workdir: Path, evaluations: list[Record], stage: str | None) -> str:
  """The sheet of the worst reconstructions."""
  note = "The held-out pictures with the lowest PSNR, each above its reconstruction."
  return sheet_section(workdir, evaluations, stage, "worst", "Worst reconstructions", note)


def neighbours_section(workdir: Path, evaluations: list[Record], stage: str | None) -> str:
  """The verdict of the memorisation audit, and its sheet."""
  audit = (last_evaluation(evaluations, stage) or {}).get("memorisation")
  if not audit:
    return ""
  verdict = "This model copies training pictures." if audit["flagged"] else "No copying is seen."
  note = (
    f"{100 * audit['nearer']:.1f} % of samples are nearer to a training picture than to one of as many "
    f"held-out "
    f"pictures; chance is 50 %. {100 * audit['copies']:.1f} % are as near to a training picture as 1 % "
    f"of held-out "
    f"pictures are. {verdict} The most suspicious samples, above the nearest training picture and the "
    f"nearest "
    "held-out one."
  )
  return sheet_section(workdir, evaluations, stage, "nearest", "Nearest neighbours", note)


def sheet_section(
  workdir: Path, evaluations: list[Record], stage: str | None, what: str, title: str, note: str
) -> str:
  """A sheet that the newest evaluation of a stage wrote; empty without that file."""
  newest = last_evaluation(evaluations, stage)
  if newest is None:
    return ""
  path = workdirs.evaluation_folder(workdir) / f"{newest['file']}-{what}.png"
  if not path.is_file():
    return ""
  return page.section(title, page.figure(read_sheet(path), path.name), note=note)


def versions_section(newest: list[Record]) -> str:
  """The versions of packages that the newest evaluations ran with."""
  if not newest:
    return ""
  lines = [(record["stage"], *map(str, record["versions"].values())) for record in newest]
  return page.section("Versions", page.html_table(("stage", *newest[0]["versions"]), lines))
