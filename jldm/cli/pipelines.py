"""Whole pipelines for `jldm convert`: to a workdir that draws from prompts, and their U-Nets back."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jldm.config.experiment import Experiment, Need, Sampling, Stage
from jldm.config.serialize import HERE
from jldm.core import trees
from jldm.core.errors import UserError
from jldm.data.tfds import ImageData
from jldm.inference.load import TOKENIZER, load, restore_result
from jldm.inference.model import build_model, find_stage
from jldm.interop import denoisers, towers
from jldm.interop.denoisers import Denoiser
from jldm.interop.pipeline import STABLE, XL, Pipeline, read_pipeline, save_pipeline
from jldm.interop.towers import TextTower
from jldm.models.conditioners.conditioner import Conditioner
from jldm.models.conditioners.pictures import Masked
from jldm.models.conditioners.sizes import Sizes
from jldm.models.conditioners.text import Text
from jldm.models.denoisers.unet import UNet
from jldm.models.towers.joined import JoinedText
from jldm.models.towers.tokenizers import JoinedTokenizer, Tokenizer
from jldm.objectives.autoencoder import Reconstruction
from jldm.objectives.diffusion import Diffusion
from jldm.objectives.tower import Tower
from jldm.samplers.guidance import ClassifierFree
from jldm.storage import workdir as workdirs
from jldm.storage.checkpoint import Checkpoints

AUTOENCODER, TEXT, DENOISER = "autoencoder", "text", "denoiser"
TOKENIZERS = (TOKENIZER, f"{TOKENIZER}_2")
STEPS = 50  # as diffusers' pipelines have by default


def import_pipeline(source: Path, out: Path, allow_nan: bool = False) -> str:
  """Writes a published pipeline as a workdir that holds all that sampling needs."""
  pipeline = read_pipeline(source, allow_nan)
  experiment = pipeline_experiment(pipeline)
  workdirs.claim_workdir(out, experiment)
  for tower, name in zip(pipeline.towers, TOKENIZERS):
    towers.copy_tokenizer(tower.tokenizer, out / name)
  items = {
    AUTOENCODER: {"codec": pipeline.codec},
    TEXT: {"ema": joined_tower(pipeline)[1]},
    DENOISER: {"ema": {"denoiser": pipeline.denoiser.params}},
  }
  for stage in experiment.stages:
    with Checkpoints(workdirs.checkpoints_folder(out, stage.name)) as saved:
      saved.save(stage.steps, items[stage.name])
  count = trees.count(pipeline.denoiser.params) / 1e6
  left_out = f"; left out: {', '.join(pipeline.left_out)}" if pipeline.left_out else ""
  return f"{out}: a workdir to sample from, UNet, {count:.2f} M parameters{left_out}"


def joined_tower(pipeline: Pipeline) -> tuple[Any, dict]:
  """The one tower, or both as one, and its parameters."""
  if len(pipeline.towers) == 1:
    return pipeline.towers[0].network, pipeline.tower_params[0]
  networks = (tower.network for tower in pipeline.towers)
  return JoinedText(*networks), dict(zip(("first", "second"), pipeline.tower_params))


def pipeline_experiment(pipeline: Pipeline, folder: str = HERE) -> Experiment:
  """A pipeline as finished stages, its tokenizers in a folder."""
  tower = joined_tower(pipeline)[0]
  denoiser, network = pipeline.denoiser, pipeline.autoencoder
  height, width = (side * network.factor for side in denoiser.latent[:2])
  objective = Diffusion(
    network=denoiser.network,
    process=denoiser.process,
    parametrization=denoiser.parametrization,
    conditioners=pipeline_conditioners(pipeline, folder, tower, height, width),
  )
  return Experiment(
    data=ImageData(name="captioned", height=height, width=width, channels=network.channels),
    stages=(
      Stage(name=AUTOENCODER, objective=Reconstruction(network=network), steps=0),
      Stage(name=TEXT, objective=Tower(network=tower), steps=0),
      Stage(
        name=DENOISER, needs=(Need("codec", AUTOENCODER), Need(TEXT, TEXT)), objective=objective, steps=0
      ),
    ),
    sampling=Sampling(
      sampler=pipeline.sampler,
      steps=STEPS,
      grid=pipeline.grid,
      guidance=ClassifierFree(pipeline.kind.guidance_scale),
    ),
  )


def pipeline_conditioners(
  pipeline: Pipeline, folder: str, tower: Any, height: int, width: int
) -> tuple[Conditioner, ...]:
  """The text, XL's sizes after it, and what is known of a picture."""
  tokenizers = [Tokenizer(f"{folder}/{name}") for _, name in zip(pipeline.towers, TOKENIZERS)]
  features = pipeline.size_features
  text = Text(
    name=TEXT,
    tower=tower,
    tokenizer=tokenizers[0] if len(tokenizers) == 1 else JoinedTokenizer(*tokenizers),
    pooled=bool(features),
    zero_null=pipeline.zero_null,
  )
  sizes = (Sizes(height=height, width=width, features=features),) if features else ()
  return (text, *sizes, *((Masked(as_diffusers=True),) if pipeline.masked else ()))


def is_pipeline_workdir(source: Path) -> bool:
  """Whether a workdir draws by a U-Net from what text towers of published kinds read."""
  if not (source / "experiment.json").is_file():
    return False
  stage = workdirs.read_experiment(source).last("denoiser")
  return (
    stage is not None
    and isinstance(stage.objective, Diffusion)
    and isinstance(stage.objective.network, UNet)
    and any(isinstance(each, Text) for each in stage.objective.conditioners)
  )


def export_pipeline(source: Path, out: Path) -> str:
  """Writes a workdir that draws from prompts as a folder of diffusers; UserError as `save_pipeline`."""
  model, params = load(source)
  text = next(each for each in model.conditioners.values() if isinstance(each, Text))
  sizes = next((each for each in model.conditioners.values() if isinstance(each, Sizes)), None)
  joined = isinstance(text.tower, JoinedText)
  others = [name for name, each in model.conditioners.items() if not isinstance(each, (Text, Sizes, Masked))]
  if others:
    raise UserError(f"workdir {str(source)!r} has conditioners {', '.join(others)}; diffusers has Text alone")
  networks, tokenizers, own = (text.tower,), (text.tokenizer,), (params[text.name],)
  if joined:
    networks, tokenizers = ((both.first, both.second) for both in (text.tower, text.tokenizer))
    own = (params[text.name]["first"], params[text.name]["second"])
  objective = model.objective
  save_pipeline(
    out,
    Pipeline(
      kind=XL if joined else STABLE,
      denoiser=Denoiser(
        objective.network, params["denoiser"], model.process, objective.parametrization, model.latent_shape
      ),
      autoencoder=model.codec.network,
      codec=params["codec"],
      towers=tuple(map(TextTower, networks, tokenizers)),
      tower_params=own,
      sampler=model.sampling.sampler,
      grid=model.sampling.grid,
      size_features=sizes.features if sizes else 0,
      zero_null=text.zero_null,
      masked=any(isinstance(each, Masked) for each in model.conditioners.values()),
      left_out=(),
    ),
  )
  return f"{out}: a folder for diffusers, UNet, {trees.count(params['denoiser']) / 1e6:.2f} M parameters"


def export_unet(source: Path, out: Path, dtype: str = "float32") -> str:
  """Writes the averaged U-Net of a workdir as a folder of diffusers, such as `unet` of a pipeline's."""
  at = find_stage(source)
  objective = at.stage.objective
  if not isinstance(objective.network, UNet):
    raise UserError(
      f"{str(source)!r} has a {type(objective.network).__name__}; expected a UNet with --kind unet"
    )
  params = jax.tree.map(lambda x: np.asarray(x, dtype), restore_result(at)[1].params[DENOISER])
  side = build_model(at.experiment).latent_shape[0]
  features = [each.features for each in objective.conditioners if isinstance(each, Sizes)]
  denoisers.save_unet(out, objective.network, params, side, *features[:1])
  return f"{out}: a folder for diffusers, UNet, {trees.count(params) / 1e6:.2f} M parameters"
