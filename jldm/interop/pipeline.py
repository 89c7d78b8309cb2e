"""Reads a text-to-image pipeline of diffusers from its folder: Stable Diffusion 1.5, 2.1 and XL.

  pipeline = read_pipeline("stable-diffusion-v1-5")

Its parts are read by the modules that read them alone: `denoisers`, `pretrained`, `towers`, `scheduler`.
Here is what a pipeline says besides, in model_index.json, and what must fit between parts.
"""

from collections.abc import Iterator, Mapping
import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from jldm.core.errors import UserError, printable
from jldm.interop import denoisers, pretrained, towers, unet
from jldm.interop.config import config_flag, config_number
from jldm.interop.locate import CONFIG, parse_config, save_json
from jldm.interop.scheduler import (
  FILE as SCHEDULER_FILE,
  find_scheduler,
  read_sampling,
  read_scheduler,
  scheduler_config,
)

INDEX = "model_index.json"
VAE, UNET, SCHEDULER = "vae", "unet", "scheduler"


class Kind(NamedTuple):
  """A class of pipelines.   guidance_scale: its default.   fields: of its text towers' networks."""

  towers: tuple[str, ...]
  guidance_scale: float
  fields: Mapping[str, Any]


STABLE = Kind(("text_encoder",), 7.5, {})
XL = Kind(("text_encoder", "text_encoder_2"), 5.0, {"skip": 1, "final_norm": False})
CLASSES = {
  "StableDiffusionPipeline": STABLE,
  "StableDiffusionImg2ImgPipeline": STABLE,
  "StableDiffusionInpaintPipeline": STABLE,
  "StableDiffusionXLPipeline": XL,
  "StableDiffusionXLImg2ImgPipeline": XL,
  "StableDiffusionXLInpaintPipeline": XL,
}
DEFAULTS = {"skip": 0, "final_norm": True}  # of a tower's fields that its files do not say
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")  # parts that no picture needs


class Pipeline(NamedTuple):
  """A published pipeline, its parameters in float32.

  towers, tower_params: in the order in which their tokens are joined.
  size_features: sinusoids of each of XL's sizes; 0 for none.
  zero_null: whether the null of guidance is zeros, and not the empty caption.
  masked: whether the U-Net reads a masked picture, for inpainting.
  left_out: parts that it has and that are not read.
  """

  kind: Kind
  denoiser: denoisers.Denoiser
  autoencoder: Any
  codec: dict
  towers: tuple[towers.TextTower, ...]
  tower_params: tuple[dict, ...]
  sampler: Any
  grid: Any
  size_features: int
  zero_null: bool
  masked: bool
  left_out: tuple[str, ...]


def is_pipeline(folder: Path) -> bool:
  return (folder / INDEX).is_file()


def read_pipeline(folder: str | Path, allow_nan: bool = False) -> Pipeline:
  """All parts of a pipeline's folder.

  Raises:
    UserError: naming the part and what is wrong with it: it is missing, of another class or network, or does
      not fit another part.
  """
  folder = Path(folder)
  index = read_index(folder)
  kind = CLASSES[index["_class_name"]]
  config = unet_config(folder)
  with naming(SCHEDULER):
    read_scheduler(scheduler_file(folder))
    sampler, grid = read_sampling(scheduler_file(folder))
  with naming(INDEX):
    zero_null = config_flag(index, "force_zeros_for_empty_prompt", kind is XL)
  with naming(VAE):
    autoencoder, codec = pretrained.read_pretrained(folder / VAE, allow_nan=allow_nan)
  made = [read_tower(folder, part, kind, allow_nan) for part in kind.towers]
  check_fit(config, autoencoder, [tower.network for tower, _ in made])
  with naming(UNET):
    denoiser = denoisers.read_unet(folder / UNET, allow_nan=allow_nan)
  features = (
    config_number(config, "addition_time_embed_dim", 256) if denoiser.network.vector_layers > 1 else 0
  )
  left_out = tuple(name for name in LEFT_OUT if is_there(index.get(name)))
  return Pipeline(
    *(kind, denoiser, autoencoder, codec),
    *zip(*made),
    *(sampler, grid, features, zero_null, is_masked(config), left_out),
  )


@contextlib.contextmanager
def naming(part: str) -> Iterator[None]:
  """Puts the name of a part before an error of the block."""
  try:
    yield
  except UserError as error:
    raise UserError(f"{part}: {error}") from error


def read_index(folder: Path) -> dict[str, Any]:
  """model_index.json of a pipeline that is read here, all parts there."""
  with naming(INDEX):
    index = parse_config(folder / INDEX, "a pipeline's")
    kind = index.get("_class_name") if isinstance(index, dict) else None
    if kind not in CLASSES:
      raise UserError(
        f"_class_name={printable(str(kind)[:60])}; expected one of {', '.join(CLASSES)}; of others give "
        "--kind autoencoder, or another part that is read alone"
      )
  tokenizers = [part.replace("text_encoder", "tokenizer") for part in CLASSES[kind].towers]
  for part in (UNET, VAE, SCHEDULER, *CLASSES[kind].towers, *tokenizers):
    if not (folder / part).is_dir():
      raise UserError(f"{part}: {str(folder / part)!r} is no folder; expected that of the pipeline")
  return index


def is_there(entry: Any) -> bool:
  """Whether an entry of model_index.json, [library, class], names a part."""
  return isinstance(entry, list) and any(each is not None for each in entry)


def scheduler_file(folder: Path) -> Path:
  found = find_scheduler(folder / UNET)
  if found is None:
    raise UserError(f"{str(folder / SCHEDULER)!r} has no scheduler_config.json; put it there")
  return found


def unet_config(folder: Path) -> dict[str, Any]:
  with naming(UNET):
    config = denoisers.read_config(folder / UNET, unet.CLASS)
    unet.network(config)
    return config


def is_masked(config: Mapping[str, Any]) -> bool:
  _, shape = unet.network(config)
  return shape.in_channels > shape.out_channels


def read_tower(folder: Path, part: str, kind: Kind, allow_nan: bool) -> tuple[towers.TextTower, dict]:
  """A text tower with its tokenizer, as the kind of pipelines uses it."""
  with naming(part):
    tower, params = towers.load_tower(folder, part, allow_nan, **kind.fields)
  with naming(part.replace("text_encoder", "tokenizer")):
    if tower.tokenizer is None:
      raise UserError(f"there are no files of {', '.join(towers.TOKENIZER_FILES)}; put them there")
    if tower.tokenizer.ids > tower.network.length:
      raise UserError(
        f"model_max_length={tower.tokenizer.ids}; expected at most {tower.network.length}, "
        f"max_position_embeddings of {part}"
      )
  return tower, params


def check_fit(config: Mapping[str, Any], autoencoder: Any, networks: list[Any]) -> None:
  """Raises a UserError unless the U-Net of a config fits its text towers and its autoencoder."""
  network, shape = unet.network(config)
  width = sum(each.width for each in networks)
  pooled = networks[-1].projection or networks[-1].width
  sizes = 6 * config_number(config, "addition_time_embed_dim", 256)
  if network.token_width != width:
    raise UserError(
      f"{UNET}: cross_attention_dim={network.token_width}; expected {width}, hidden_size of the text encoder"
      f"{'s together' if len(networks) > 1 else ''}"
    )
  if (network.vector_layers > 1) != (len(networks) > 1):
    raise UserError(
      f"{UNET}: addition_embed_type={config.get('addition_embed_type')}; expected "
      f"{'text_time' if len(networks) > 1 else 'null'} of a pipeline with {len(networks)} text encoders"
    )
  if shape.vector and shape.vector != pooled + sizes:
    raise UserError(
      f"{UNET}: projection_class_embeddings_input_dim={shape.vector}; expected {pooled + sizes}: {pooled} of "
      f"the text and {sizes} of sizes"
    )
  if autoencoder.latent_channels != shape.out_channels:
    raise UserError(
      f"{VAE}: latent_channels={autoencoder.latent_channels}; expected {shape.out_channels}, out_channels of "
      f"the {UNET}"
    )
  if shape.in_channels not in (shape.out_channels, 2 * shape.out_channels + 1):
    raise UserError(
      f"{UNET}: in_channels={shape.in_channels}; expected {shape.out_channels}, or "
      f"{2 * shape.out_channels + 1} for inpainting"
    )


def save_pipeline(folder: str | Path, pipeline: Pipeline) -> None:
  """Writes the folder that diffusers' pipeline reads; the inverse of `read_pipeline`.

  Raises:
    UserError: a part that diffusers does not have, or a folder that cannot be written.
  """
  folder, denoiser = Path(folder), pipeline.denoiser
  steps = scheduler_config(denoiser.process, denoiser.parametrization, pipeline.sampler, pipeline.grid)
  features = pipeline.size_features or 256
  denoisers.save_unet(folder / UNET, denoiser.network, denoiser.params, denoiser.latent[0], features)
  pretrained.save(folder / VAE, pipeline.autoencoder, pipeline.codec)
  save_json(folder / SCHEDULER / SCHEDULER_FILE, steps)
  parts = {
    UNET: ["diffusers", unet.CLASS],
    VAE: ["diffusers", parse_config(folder / VAE / CONFIG)["_class_name"]],
    SCHEDULER: ["diffusers", steps["_class_name"]],
  }
  for part, tower, params in zip(pipeline.kind.towers, pipeline.towers, pipeline.tower_params):
    network = towers.change_fields(tower.network, {name: DEFAULTS[name] for name in pipeline.kind.fields})
    towers.save_tower(folder / part, network, params)
    tokenizer = part.replace("text_encoder", "tokenizer")
    towers.copy_tokenizer(tower.tokenizer, folder / tokenizer)
    (kind,) = parse_config(folder / part / CONFIG)["architectures"]
    parts |= {part: ["transformers", kind], tokenizer: ["transformers", "CLIPTokenizer"]}
  save_json(folder / INDEX, index_of(pipeline) | parts)


def index_of(pipeline: Pipeline) -> dict[str, Any]:
  """What model_index.json says besides its parts."""
  name = {True: "StableDiffusionXL", False: "StableDiffusion"}[pipeline.kind is XL]
  return {
    "_class_name": f"{name}{'Inpaint' if pipeline.masked else ''}Pipeline",
    "_diffusers_version": "0.42.0",
    **(
      {"force_zeros_for_empty_prompt": pipeline.zero_null}
      if pipeline.kind is XL
      else {"safety_checker": [None, None], "requires_safety_checker": False}
    ),
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
  }
