"""`jldm convert SOURCE OUT --to {jldm,diffusers} [--kind …]`: weights in other forms.

autoencoder   from a folder of diffusers, a file of CompVis, a name of the hub or a workdir
              to a workdir or a folder of diffusers
dit, sit, repa, lightningdit
              from a .safetensors file in their authors' names, dit also from a folder of diffusers,
              with the autoencoder of --codec, to a workdir to sample from
params        from a workdir to one .safetensors with its experiment and averaged parameters, and back
              to a workdir to sample from
text          from the folder of a text encoder, CLIP's or T5's, or of a pipeline that has one
              to a workdir with its tokenizer, or back to a folder of transformers
pipeline      from the folder of a text-to-image pipeline of diffusers to a workdir to sample from, and back
unet          from a workdir, its averaged U-Net to a folder that diffusers loads
lpips         from a .safetensors of the lpips package's parameters to the file that jldm's LPIPS reads
inception, dinov2, clip
              likewise for the networks of `jldm evaluate --extractor`: tests/parity/inception.py makes
              SOURCE from the file that pytorch-fid downloads; facebook/dinov2-small and
              openai/clip-vit-large-patch14-336 of transformers have theirs
"""

import argparse
from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from jldm.cli import options
from jldm.cli.extractors import EXTRACTORS, describe_arrays, import_extractor, import_lpips
from jldm.cli.pipelines import export_pipeline, export_unet, import_pipeline, is_pipeline_workdir
from jldm.cli.text_encoders import export_tower, import_tower, is_tower_workdir
from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.config.serialize import dumps, loads
from jldm.core import trees
from jldm.core.errors import UserError
from jldm.core.files import locked_folder
from jldm.data.tfds import ImageData
from jldm.inference.load import load, load_codec
from jldm.inference.model import build_model, codec_shapes, denoiser_shapes, find_stage
from jldm.interop import (
  denoisers,
  dit,
  flat,
  latent_scale,
  locate,
  pipeline,
  pretrained,
  rename,
  safetensors,
  towers,
  vae,
)
from jldm.models.conditioners.label import ClassLabel
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.samplers.guidance import ClassifierFree, FirstChannels, Interval
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "source", metavar="SOURCE", help="a workdir, a folder, a .safetensors file, or a name of the hub"
  )
  parser.add_argument("out", metavar="OUT", help="the .safetensors file, the workdir or the folder to write")
  parser.add_argument("--to", choices=("jldm", "diffusers"), required=True, help="the format of OUT")
  parser.add_argument(
    "--kind",
    choices=sorted({kind for kind, _ in RULES}),
    help="what SOURCE holds (default: params, if SOURCE is a workdir or was made from one)",
  )
  parser.add_argument(
    "--scaling-factor", type=options.finite, help="scaling factor of the latents, if SOURCE does not state it"
  )
  parser.add_argument(
    "--shift-factor",
    type=options.finite,
    help="shift factor of the latents, if SOURCE does not state it (default: 0)",
  )
  parser.add_argument("--allow-nan", action="store_true", help="accept weights that are not finite")
  parser.add_argument(
    "--codec",
    help="the autoencoder of a denoiser: a folder of diffusers, a file of CompVis or a workdir (default: the "
    "vae in SOURCE)",
  )
  parser.add_argument(
    "--latents-stats", metavar="FILE", help="a .safetensors file with the mean and std of a channel's latents"
  )
  parser.add_argument(
    "--heads", type=int, help="heads of attention, for a transformer of a width that is not published"
  )
  parser.add_argument(
    "--dtype",
    choices=rename.DTYPES,
    help="of the parameters in OUT, of a text encoder to jldm or a U-Net to diffusers (default: float32)",
  )
  parser.add_argument(
    "--as-diffusers",
    action="store_true",
    help="compute what diffusers computes of a DiT, not what its weights were trained with",
  )


def main(args: argparse.Namespace) -> None:
  source, out = Path(args.source), Path(args.out)
  kind = args.kind or detect_kind(source, args.to)
  if (kind, args.to) not in RULES:
    legal = ", ".join(f"--kind {known} --to {to}" for known, to in RULES)
    raise UserError(f"--kind {kind} --to {args.to}: there is no such conversion; expected one of {legal}")
  transformer = kind in dit.FAMILIES
  is_read = lambda *kinds: transformer or (kind in kinds and not is_workdir(source))
  takes = dict.fromkeys(SCALE, (is_read("autoencoder"), PUBLISHED))
  takes[ALLOW_NAN] = is_read("autoencoder", "pipeline"), PUBLISHED
  takes |= dict.fromkeys(OF_DENOISER, (transformer, TRANSFORMER))
  takes[DTYPE] = (kind, args.to) in DTYPED, OF_DTYPE
  rules = (
    options.Only(name, lambda _, holds=holds: holds, needs, DEFAULTS.get(name))
    for name, (holds, needs) in takes.items()
  )
  options.settle(args, tuple(rules))
  options.check_writable(out.parent, "OUT")
  given = {name: getattr(args, name) for name, (holds, _) in takes.items() if holds}
  with alone(out), options.writing(out, "OUT"):
    check_free(out)
    print(RULES[kind, args.to](source, out, **given))
    keep_card(source, out)


def keep_card(source: Path, out: Path) -> None:
  """Copies a folder's model card, which has its licence, into the folder that was made of it."""
  card = source / CARD
  if card.is_file() and out.is_dir() and card.stat().st_size <= MOST_CARD_BYTES:
    (out / CARD).write_bytes(card.read_bytes())


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
  """Only this process writes to OUT, which is checked to be free within the block.

  Raises:
    UserError: another process is writing it.
  """
  if not os.access(out.absolute().parent, os.W_OK | os.X_OK):  # made, or refused, when OUT is written
    yield
    return
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(locked_folder(out.with_name(f".{out.name}.lock")))
    except BlockingIOError as error:
      raise UserError(
        f"another process is writing {str(out)!r}; wait for it, or choose another OUT"
      ) from error
    yield


def detect_kind(source: Path, to: str) -> str:
  """The kind of a source, read from it; UserError if it does not state one."""
  if source.is_dir() and (towers.is_tower(source) or is_tower_workdir(source)):
    return "text"
  if is_pipeline_workdir(source) if to == "diffusers" else pipeline.is_pipeline(source):
    return "pipeline"
  if to == "diffusers" or not source.exists():
    return "autoencoder"
  if source.is_dir():
    if locate.is_folder(source):
      return "dit" if locate.config_class(source / locate.CONFIG) == dit.CLASS else "autoencoder"
    if (source / "experiment.json").is_file():
      return "params"
    raise UserError(
      f"{str(source)!r} has no experiment.json and no {locate.CONFIG}; expected a workdir, or a folder "
      "that diffusers saved"
    )
  if locate.find_config(source) is not None:
    return "autoencoder"
  header = safetensors.read_header(source)
  kind = "autoencoder" if vae.is_compvis(header.entries) else header.metadata.get("kind")
  if kind not in {known for known, _ in RULES}:
    raise UserError(
      f"{str(source)!r} does not state its kind; give --kind, one of {', '.join(dict(RULES.keys()))}, "
      f"or put its {locate.CONFIG} of diffusers beside it"
    )
  return kind


def convert_params(source: Path, out: Path) -> str:
  return export_params(source, out) if source.is_dir() else import_params(source, out)


def export_params(workdir: Path, out: Path) -> str:
  """Writes the codec and the denoiser of a workdir to one file, with an experiment of these stages alone."""
  at = find_stage(workdir)
  model, params = load(workdir)
  trained = [source.stage for role, source in at.needed().items() if role == "codec"]
  trained = [
    dataclasses.replace(codec, needs=(), start=codec.start if not codec.steps else "") for codec in trained
  ]
  (source,) = [codec.name for codec in trained] or [at.given()["codec"]]
  inner = {stage.name: str(workdir) for stage in at.experiment.stages}  # towers stay where they are
  kept = [
    Need(need.role, inner.get(need.source, need.source))
    for need in at.stage.needs
    if need.role in model.conditioners
  ]
  needs = (Need("codec", source), *kept)
  stage = dataclasses.replace(at.stage, objective=model.objective, needs=needs, start="")
  experiment = dataclasses.replace(at.experiment, stages=(*trained, stage))
  arrays = flat.flatten(
    {name: each for name, each in params.items() if name not in [need.role for need in kept]}
  )
  safetensors.write(out, arrays, {"format": "jldm", "kind": "params", "experiment": dumps(experiment)})
  return f"{out}: {describe_arrays(arrays)}"


def import_params(path: Path, out: Path) -> str:
  """The inverse: makes a workdir with finished stages and no optimizer state."""
  metadata = safetensors.read_header(path).metadata
  if "experiment" not in metadata:
    raise UserError(
      f"{str(path)!r} has no experiment in its metadata; expected a file that jldm convert made from a "
      "workdir"
    )
  experiment = loads(metadata["experiment"])
  model = build_model(experiment)
  like = {"codec": codec_shapes(model)} | denoiser_shapes(model)
  params = flat.unflatten(safetensors.tensors(path), like)
  write_stages(out, experiment, {"codec": {"codec": params.pop("codec")}, "denoiser": {"ema": params}})
  return f"{out}: a workdir to sample from"


def write_stages(out: Path, experiment: Experiment, items: dict[str, dict]) -> None:
  """A workdir whose stages are finished; `items` are those of a checkpoint, by what a stage makes."""
  workdirs.claim_workdir(out, experiment)
  for stage in experiment.stages:
    with Checkpoints(workdirs.checkpoints_folder(out, stage.name)) as saved:
      saved.save(stage.steps, items[stage.makes])


def import_autoencoder(source: Path, out: Path, **given: Any) -> str:
  """Writes a published autoencoder as a workdir, for `Pretrained` and `start`."""
  network, codec = pretrained.read_pretrained(str(source), **given)
  stage = Stage(name="autoencoder", objective=Reconstruction(network=network), steps=0)
  write_stages(out, Experiment(stages=(stage,)), {"codec": {"codec": codec}})
  return f"{out}: a workdir to start from, {describe_network(network, codec['params'])}"


def import_transformer(
  family: str,
  source: Path,
  out: Path,
  codec: str | None,
  latents_stats: str | None,
  heads: int | None,
  as_diffusers: bool,
  allow_nan: bool,
  **scale: Any,
) -> str:
  """Writes a published transformer and its autoencoder as a workdir to sample from."""
  found = denoisers.read_dit(source, family, heads, as_diffusers, allow_nan)
  network, codec_params = read_codec(source, codec, latents_stats, allow_nan=allow_nan, **scale)
  rules, (height, width, channels) = dit.FAMILIES[family], found.latent
  if network.latent_channels != channels:
    raise UserError(
      f"--codec has latents of {network.latent_channels} channels, and {str(source)!r} of {channels}; "
      "give the autoencoder that it was trained on"
    )
  if rules.own_statistics and np.ptp(codec_params["std"]) == 0:
    raise UserError(
      f"--kind {family} without --latents-stats; expected a .safetensors file with the mean and std of "
      "latents_stats.pt: without them samples are noise"
    )
  guidance = ClassifierFree(rules.scale)
  guidance = Interval(guidance, rules.log_snr_min) if rules.log_snr_min > -math.inf else guidance
  experiment = Experiment(
    data=ImageData(
      name="imagenet",
      height=height * network.factor,
      width=width * network.factor,
      channels=network.channels,
      classes=found.network.classes,
    ),
    stages=(
      Stage(name="autoencoder", objective=Reconstruction(network=network), steps=0),
      Stage(
        name="denoiser",
        needs=(Need("codec", "autoencoder"),),
        objective=Diffusion(
          network=found.network,
          process=found.process,
          parametrization=found.parametrization,
          conditioners=(ClassLabel(classes=found.network.classes),),
        ),
        steps=0,
      ),
    ),
    sampling=Sampling(guidance=FirstChannels(guidance, rules.channels) if rules.channels else guidance),
  )
  write_stages(
    out, experiment, {"codec": {"codec": codec_params}, "denoiser": {"ema": {"denoiser": found.params}}}
  )
  return f"{out}: a workdir to sample from, {describe_network(found.network, found.params)}"


def read_codec(source: Path, codec: str | None, latents_stats: str | None, **given: Any) -> tuple[Any, dict]:
  """The autoencoder that a denoiser's latents are of: --codec, or the one in SOURCE, a pipeline's folder.

  Raises:
    UserError: there is none, or the statistics do not fit it.
  """
  if codec is None:
    if not (source.is_dir() and locate.is_folder(source / locate.PART)):
      raise UserError(
        f"{str(source)!r} has no autoencoder; give --codec: a folder of diffusers, or a workdir"
      )
    codec = str(source / locate.PART)
  workdir = is_workdir(Path(codec))
  refuse_idle_scale(workdir, latents_stats is not None, given)
  if latents_stats is not None and given["scaling_factor"] is None:
    given["scaling_factor"] = 1.0
  network, params = load_codec(codec) if workdir else pretrained.read_pretrained(codec, **given)
  if latents_stats is None:
    return network, params
  mean, std = latent_scale.statistics_of(
    safetensors.read(latents_stats), network.latent_channels, latents_stats
  )
  return network, params | {"mean": mean, "std": std / given["scaling_factor"]}


def refuse_idle_scale(workdir: bool, statistics: bool, given: dict[str, Any]) -> None:
  """Raises a UserError for a scale that would reach nothing: a workdir has its own, statistics a mean."""
  idle = {"scaling_factor": workdir and not statistics, "shift_factor": workdir or statistics}
  for name, reaches_nothing in idle.items():
    if reaches_nothing and given[name] is not None:
      what = "--latents-stats" if statistics else "--codec, a workdir,"
      raise UserError(f"{options.option_text(name, given[name])}: {what} has it already; leave it out")


def export_autoencoder(source: Path, out: Path, **given: Any) -> str:
  """Writes the autoencoder of a workdir, or a published one, as a folder of diffusers."""
  read = load_codec if is_workdir(source) else pretrained.read_pretrained
  network, codec = read(str(source), **given)
  pretrained.save(out, network, codec)
  return f"{out}: a folder for diffusers, {describe_network(network, codec['params'])}"


def describe_network(network: Any, params: Any) -> str:
  return f"{type(network).__name__}, {trees.count(params) / 1e6:.2f} M parameters"


def is_workdir(source: Path) -> bool:
  return (source / "experiment.json").is_file()


def check_free(out: Path) -> None:
  """Raises a UserError for an OUT that exists, but for an empty folder."""
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise UserError(f"{str(out)!r} exists; choose another OUT")


RULES = {  # (kind, format of OUT) -> conversion
  ("params", "jldm"): convert_params,
  ("lpips", "jldm"): import_lpips,
  ("autoencoder", "jldm"): import_autoencoder,
  ("autoencoder", "diffusers"): export_autoencoder,
  ("text", "jldm"): import_tower,
  ("text", "diffusers"): export_tower,
  ("pipeline", "jldm"): import_pipeline,
  ("pipeline", "diffusers"): export_pipeline,
  ("unet", "diffusers"): export_unet,
}
RULES |= {(kind, "jldm"): functools.partial(import_extractor, kind) for kind in EXTRACTORS}
RULES |= {(family, "jldm"): functools.partial(import_transformer, family) for family in dit.FAMILIES}
CARD, MOST_CARD_BYTES = "README.md", 2**20
SCALE, ALLOW_NAN = ("scaling_factor", "shift_factor"), "allow_nan"  # of `pretrained.read_pretrained`
PUBLISHED = "a published autoencoder or denoiser, which is no workdir"
OF_DENOISER = ("codec", "latents_stats", "heads", "as_diffusers")
DTYPE, DTYPED = "dtype", (("text", "jldm"), ("unet", "diffusers"))
DEFAULTS = {DTYPE: rename.DTYPES[0]}
OF_DTYPE = "--kind text --to jldm, or --kind unet --to diffusers"
TRANSFORMER = f"--kind {', '.join(dit.FAMILIES)}"
