"""A run as one page, W/report.html: what it learned and how fast, what it draws, and what that is worth.

Everything is read from the workdir, but for a few samples drawn on the way; what a run has not done
yet is left out.
"""

from collections.abc import Iterator
import json
from pathlib import Path
import re
from typing import Any

import numpy as np

from jldm.config.experiment import Experiment, Stage
from jldm.config.presets import guidance_text, sampling_to_dict
from jldm.config.serialize import to_data
from jldm.core.errors import UserError
from jldm.evaluation import page
from jldm.evaluation.page import Curve
from jldm.inference.generate import Request, generate
from jldm.inference.load import conditioner_of_kind, load
from jldm.media import images as pictures
from jldm.models.conditioners.label import ClassLabel
from jldm.storage import workdir as workdirs

Record = dict[str, Any]
NEEDED = ("stage", "step", "metrics", "extractor", "reference", "real", "versions")  # of an evaluation
MOST_SHEETS = 6  # of a stage, over time
PREVIEWS, MOST_DRAWN = 8, 10  # steps and pictures of the denoising trajectory
ELSEWHERE = {
  "stage",
  "step",
  "skipped",
  "images_per_second",
  "loss",
  "grad_norm",
  "psnr",
}  # not a chart of their own
NAMES = {  # of figures
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
MEANS = {  # of figures, for who has not met them
  "frechet": "how far the samples' features lie from real ones', 0 is best",
  "kid": "the same by a kernel, without a bias for few pictures",
  "cmmd": "the same by the directions of features",
  "precision": "share of samples that look real",
  "recall": "share of real pictures that the samples come near",
  "density": "how densely samples lie where real pictures do",
  "coverage": "share of real pictures with a sample nearby",
  "agreement": "share of samples of the class that was asked for",
  "inception_score": "classes that are sure and varied",
  "duplicates": "share of samples with a twin",
  "psnr": "how near reconstructions are, pixel by pixel",
  "ssim": "how near they are in local structure",
  "lpips": "how far off they are for a network",
  "reconstruction_frechet": "how far reconstructions lie from real pictures",
  "reconstruction_kid": "the same by a kernel",
}


def build_report(workdir: Path, devices: int | None = None) -> str:
  """The page of a workdir.

  Raises:
    UserError: not a workdir.
  """
  experiment = workdirs.read_experiment(workdir)
  logged, judged = list(read_metrics(workdir / "metrics.jsonl")), read_evaluations(workdir)
  denoiser, codec = shown_stages(experiment)
  newest = [last for name in (denoiser, codec) if (last := last_evaluation(judged, name))]
  parts = [
    summary_tiles(newest),
    sheets_section(workdir, denoiser, "Samples over time", "One seed, one noise: only the network changes."),
    denoising_section(workdir, devices),
    figures_section(last_evaluation(judged, denoiser), "samples"),
    neighbours_section(workdir, judged, denoiser),
    over_time_section(judged, denoiser),
    sheets_section(
      workdir, codec, "Reconstructions", "Held-out pictures, each above what comes back through its latent."
    ),
    figures_section(last_evaluation(judged, codec), "reconstructions"),
    worst_section(workdir, judged, codec),
    *(
      training_section(stage, [row for row in logged if row.get("stage") == stage.name])
      for stage in experiment.stages
    ),
    page.section("The experiment", page.folded("as it was run", json.dumps(to_data(experiment), indent=2))),
    versions_section(newest),
  ]
  lead = (
    f"Trained on {getattr(experiment.data, 'name', type(experiment.data).__name__)}, in {workdir.resolve()}"
  )
  return page.html_page(f"{workdir.resolve().name}: a run of jldm", lead, filter(None, parts))


def read_metrics(path: Path) -> Iterator[dict]:
  """The lines of metrics.jsonl; one that a kill left half-written is skipped."""
  for line in path.read_text().splitlines() if path.is_file() else ():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(row, dict) and isinstance(row.get("step"), int):
      yield row


def read_evaluations(workdir: Path) -> list[Record]:
  """What `jldm evaluate`, or the training, wrote, in the order of steps.

  Raises:
    UserError: a file that is none of it.
  """
  found = []
  for path in workdirs.evaluation_folder(workdir).glob("*.json"):
    try:
      told = json.loads(path.read_text())
      found.append(
        (told["stage"], told["step"], {key: told[key] for key in NEEDED} | told | {"file": path.stem})
      )
    except (ValueError, TypeError, KeyError) as error:
      raise UserError(
        f"{str(path)!r} is no evaluation; remove it, or make it anew with jldm evaluate"
      ) from error
  return [told for _, _, told in sorted(found, key=lambda each: each[:2])]


def shown_stages(experiment: Experiment) -> tuple[str | None, str | None]:
  """The names of the last stage that draws and of the last codec; None for what the experiment has not."""
  return tuple(stage and stage.name for stage in map(experiment.last, ("denoiser", "codec")))


def last_evaluation(judged: list[Record], stage: str | None) -> Record | None:
  """The last evaluation of a stage."""
  return next((told for told in reversed(judged) if told["stage"] == stage), None)


def summary_tiles(newest: list[Record]) -> str:
  """The figures that are asked for first."""
  facts = []
  for told in newest:
    for name in ("frechet", "recall", "agreement", "psnr", "reconstruction_frechet"):
      if each := told["metrics"].get(name):
        beside = (
          f"real pictures {each['real']['value']:.3g}" if "real" in each else f"of {each['n']:,} pictures"
        )
        what = " of reconstructions" if name == "reconstruction_frechet" else ""
        facts.append(
          (
            figure_names(told)[name] + what,
            f"{each['value']:.3g}",
            f"{each['low']:.3g} to {each['high']:.3g}; {beside}",
          )
        )
  return page.tiles(facts) if facts else ""


def training_section(stage: Stage, logged: list[dict]) -> str:
  """Losses, times and held-out quality of a stage."""
  if not logged:
    return ""
  of = lambda key: curve_of(
    [(row["step"], row[key]) for row in logged if isinstance(row.get(key), (int, float))]
  )
  timed = [
    (row["step"], 1000 * stage.batch_size / row["images_per_second"])
    for row in logged
    if row.get("images_per_second")
  ]
  known = sorted({key for row in logged for key in row} - ELSEWHERE)
  terms = [key for key in known if not key.startswith(("held_out_", "evaluation_"))]
  terms = [key for key in terms if len(set(of(key).y)) > 1 and of(key) != of("loss")]
  charts = [
    page.chart("Loss", {"loss": of("loss")}, "mean since the last line"),
    *(page.chart(key.replace("_", " "), {key: of(key)}, "") for key in terms),
    page.chart("PSNR", {"training": of("psnr"), "held out": of("held_out_psnr")}, "dB"),
    page.chart("Gradient norm", {"norm": of("grad_norm")}, ""),
    page.chart(
      "Step time", {"time": curve_of(timed[1:])}, "milliseconds, without the first line, which compiles"
    ),
  ]
  skipped = sum(int(row.get("skipped", 0)) for row in logged)
  note = f"{logged[-1]['step']:,} of {stage.steps:,} steps of {stage.batch_size} pictures"
  note += f"; {skipped} updates were not finite and not made" if skipped else ""
  return page.section(f"Training: {stage.name}", page.row(*charts), note=note)


def curve_of(points: list[tuple[float, float]]) -> Curve:
  return Curve(*zip(*points)) if points else Curve((), ())


def evenly_spaced(items: list[Any], most: int) -> list[Any]:
  """At most so many of them, evenly, the first and the last included."""
  return [
    items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int))
  ]


def sheets_section(workdir: Path, stage: str | None, title: str, note: str) -> str:
  """Some of the pictures that a stage left while training."""
  found = sorted(
    (int(match[1]), path)
    for path in (workdir / "images").glob(f"{stage}-*.png")
    if (match := re.fullmatch(rf"{stage}-(\d+)", path.stem))
  )
  drawn = (
    [page.figure(path.read_bytes(), f"step {step:,}") for step, path in evenly_spaced(found, MOST_SHEETS)]
    if found
    else []
  )
  return page.section(title, page.row(*drawn), note=note) if drawn else ""


def denoising_section(workdir: Path, devices: int | None) -> str:
  """What the steps of the sampler take a few pictures for."""
  title = "Denoising"
  try:
    model, params = load(workdir)
    if model.parts:
      raise UserError(f"samples in parts ({', '.join(model.parts)}) have no sheet of steps")
    name = conditioner_of_kind(model, ClassLabel)
    count = MOST_DRAWN if name is None else min(model.conditioners[name].classes, MOST_DRAWN)
    request = Request(n=count, given={} if name is None else {name: np.arange(count)}, estimates=PREVIEWS)
    last, estimates, _ = generate(model, params, request, devices=devices)
  except UserError as error:
    return page.section(title, page.paragraph(f"Not drawn: {error}"))
  scale = max(1, round(pictures.CELL / min(last.shape[1:3])))
  sheet = pictures.tile_rows(
    [np.concatenate([each, image[None]]) for each, image in zip(estimates, last)], scale
  )
  chosen = sampling_to_dict(model.sampling)
  note = (
    f"A row a picture, from noise to the left: what {PREVIEWS} of the steps took it for, and last the picture. "
    f"{chosen['sampler']}, {chosen['steps']} steps, {guidance_text(chosen)}, seed 0."
  )
  return page.section(
    title, page.figure(pictures.encode_png(sheet, {"what": "denoising"}), "left to right"), note=note
  )


def figures_section(told: Record | None, what: str) -> str:
  """Every figure of an evaluation, with its interval and that of real pictures."""
  if told is None:
    return ""
  lines, marks = [], []
  for name, each in told["metrics"].items():
    real = each.get("real")
    lines.append(
      (
        figure_names(told).get(name, name),
        f"{each['value']:.4g}",
        f"{each['low']:.4g} to {each['high']:.4g}",
        f"{real['value']:.4g}" if real else "",
        f"{each['n']:,}",
      )
    )
    ends = tuple((part["low"], part["value"], part["high"]) for part in (each, real) if part)
    marks.append(page.whisker(*ends[0], *ends[1:]))
  head = ("", "value", "95 % interval", "real against real", "n", "intervals, real below")
  remarks = [MEANS.get(name, "") for name in told["metrics"]]
  parts = [page.html_table(head, lines, remarks, marks), class_table(told.get("classes", {}))]
  parts += [
    page.paragraph(f"{NAMES.get(name, name)} is left out: {why}.")
    for name, why in told.get("left_out", {}).items()
  ]
  return page.section(
    f"What {what} are worth", *parts, note=f"Step {told['step']:,}. {describe_conditions(told)}"
  )


def figure_names(told: Record) -> dict[str, str]:
  """Of figures, the Fréchet distance as the extractor's weights allow to call it."""
  return NAMES | dict.fromkeys(
    ("frechet", "reconstruction_frechet"), told["extractor"].get("distance", NAMES["frechet"])
  )


def describe_conditions(told: Record) -> str:
  """What a figure depends on, as a sentence."""
  each, among, drawn = told["extractor"], told["reference"], told.get("samples")
  how = "{n:,} samples, {sampler} in {steps} steps on the grid {grid}, {guidance}, seed {seed}. "
  weights = f"weights {each['weights']}" if each["weights"] else "no weights"
  how = how.format(**drawn | {"guidance": guidance_text(drawn)}) if drawn else ""
  return (
    f"{how}Features of {each['name']} {each['version']} ({each['preprocessing']}; "
    f"{weights}), against {among['n']:,} pictures of {among['split']}; real pictures are {told['real']['n']:,} of "
    f"{told['real']['split']}."
  )


def class_table(classes: dict[str, Record]) -> str:
  if not classes:
    return ""
  names = list(next(iter(classes.values())))
  lines = [
    (
      label,
      *(f"{each[name]['value']:.3g}" if name in each else "" for name in names),
      str(next(iter(each.values()))["n"]),
    )
    for label, each in classes.items()
  ]
  return page.html_table(("class", *(NAMES.get(name, name) for name in names), "n"), lines)


def over_time_section(judged: list[Record], stage: str | None) -> str:
  """Figures over the steps that were judged as the last one was."""
  every = [told for told in judged if told["stage"] == stage]
  alike = [
    told
    for told in every
    if all(told[key] == every[-1][key] for key in ("samples", "extractor", "reference"))
  ]
  if len(alike) < 2:
    return ""
  charts = []
  for name in alike[-1]["metrics"]:
    points = [(told["step"], told["metrics"][name]) for told in alike if name in told["metrics"]]
    x, each = zip(*points)
    drawn = Curve(x, *([value[end] for value in each] for end in ("value", "low", "high")))
    real = Curve(x, [value["real"]["value"] for value in each])
    charts.append(page.chart(NAMES.get(name, name), {"samples": drawn, "real pictures": real}, ""))
  return page.section(
    "Figures over time", page.row(*charts), note="Samples of one seed, drawn and judged alike."
  )


def worst_section(workdir: Path, judged: list[Record], stage: str | None) -> str:
  return sheet_section(
    workdir,
    judged,
    stage,
    "worst",
    "Worst reconstructions",
    "The held-out pictures that come back worst by PSNR, each above its reconstruction.",
  )


def neighbours_section(workdir: Path, judged: list[Record], stage: str | None) -> str:
  told = (last_evaluation(judged, stage) or {}).get("memorisation")
  if not told:
    return ""
  percent = {name: f"{100 * told[name]:.1f} %" for name in ("nearer", "copies")}
  said = (
    f"{percent['nearer']} of samples are nearer to a training picture than to one of as many held-out ones, where 50 % is "
    f"chance; {percent['copies']} are as near to one as 1 % of held-out pictures are. "
  )
  said += "This model copies what it was trained on." if told["flagged"] else "No copying is seen."
  return sheet_section(
    workdir,
    judged,
    stage,
    "nearest",
    "Nearest neighbours",
    f"{said} The most suspicious samples, above the nearest training picture and the nearest held-out one.",
  )


def sheet_section(
  workdir: Path, judged: list[Record], stage: str | None, what: str, title: str, note: str
) -> str:
  """A sheet that the newest evaluation of a stage left."""
  files = [told["file"] for told in judged if told["stage"] == stage]
  path = workdirs.evaluation_folder(workdir) / f"{files[-1]}-{what}.png" if files else None
  return (
    page.section(title, page.figure(path.read_bytes(), path.name), note=note)
    if path and path.is_file()
    else ""
  )


def versions_section(newest: list[Record]) -> str:
  """Of whatever made the newest figures."""
  lines = [(told["stage"], *map(str, told["versions"].values())) for told in newest]
  head = next((("figures of", *told["versions"]) for told in newest), ())
  return page.section("Versions", page.html_table(head, lines)) if lines else ""
