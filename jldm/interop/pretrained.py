"""Loads published autoencoders from a folder, a file or the Hugging Face hub, and saves ours as diffusers'
are.

  autoencoder, params = load("stabilityai/sd-vae-ft-mse")  # or a folder with config.json, or a file of
  CompVis
  latents = autoencoder.scaled(params, autoencoder.encode(params, images).sample(keys))
  images = autoencoder.decode(params, autoencoder.raw(params, latents))

`params` is a tree as in `models.codecs.codec`: {"params", "extra", "mean" [C], "std" [C]}.  Mean and
std come from the config.json (`latent_scale`) and are never measured.
"""

from collections.abc import Iterator, Mapping
import dataclasses
from pathlib import Path
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.interop import dc, flat, msgpack, rename, safetensors, tiny, vae
from jldm.interop.latent_scale import read_statistics, write_statistics
from jldm.interop.locate import CONFIG, find_config, find_source, parse_config, save_folder, weights_file
from jldm.models.autoencoders.dc import DCAutoencoder
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.posterior import Gaussian
from jldm.models.autoencoders.tiny import TinyAutoencoder
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import ImageCodec, variables

CLASSES = {  # of diffusers: each module has network(config), config(network), table(network)
  "AutoencoderKL": vae,
  "VQModel": vae,
  "AutoencoderTiny": tiny,
  "AutoencoderDC": dc,
}
MODULES = {
  KLAutoencoder: vae,
  VQAutoencoder: vae,
  TinyAutoencoder: tiny,
  DCAutoencoder: dc,
}  # of our networks
OTHERS = (
  r"(loss|model_ema|model|cond_stage_model|conditioner|denoiser)\..*|scale_factor|.*\.num_batches_tracked"
)
COMPVIS = "give an autoencoder of CompVis's latent-diffusion"  # if tensors do not fit
FLAX_TREE = "give the parameters of a FlaxAutoencoderKL with its network"
MOST_PIXEL = 4.0  # of floats that are meant to lie in [-1, 1], and of a decoder's lie near it
Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """A published network; its methods take the params that `load` returns with it, and may be jitted."""

  network: Any  # linen Module

  @property
  def codec(self) -> ImageCodec:
    """As a denoiser's codec; Tiled(autoencoder.codec, Exact(32)) takes less memory."""
    return ImageCodec(self.network)

  def encode(self, params: dict, images: Array) -> Gaussian:
    """images [B, H, W, C], uint8 or in [-1, 1] -> the posterior of raw latents [B, h, w, c].

    Raises:
      UserError: another order of axes, no batch, sides that the network cannot divide, or other numbers.
    """
    images = check_batch("images", images, self.network.channels)
    check_pixels(images)
    self.codec.latent_spec((("image", jax.ShapeDtypeStruct(images.shape[1:], images.dtype)),))
    return self.codec.encode(params, {"image": images})

  def decode(self, params: dict, latents: Array) -> Array:
    """Raw latents [B, h, w, c] -> images [B, H, W, C], near [-1, 1].

    Raises:
      UserError: another order of axes, or no batch.
    """
    latents = check_batch("latents", latents, self.network.latent_channels)
    return self.network.apply(variables(params), latents, method="decode")

  def scaled(self, params: dict, latents: Array) -> Array:
    """Raw latents as a denoiser knows them: equation (1) of `latent_scale`."""
    return codecs.standardised(params, latents)

  def raw(self, params: dict, latents: Array) -> Array:
    """The inverse of `scaled`."""
    return codecs.destandardised(params, latents)


def check_batch(name: str, values: Any, channels: int) -> Array:
  """Values [B, H, W, C] as an array; UserError where the batch is missing or the channels are not last."""
  values = values if isinstance(values, jax.Array) else np.asarray(values)
  shape = values.shape
  if len(shape) == 4 and shape[-1] == channels:
    return values
  hint = ""
  if len(shape) in (3, 4) and shape[-1] != channels and shape[-3] == channels:
    order = "(0, 2, 3, 1)" if len(shape) == 4 else "(1, 2, 0)[None]"
    hint = f"; channels come last here: {name}.transpose{order}"
  elif len(shape) == 3 and shape[-1] == channels:
    hint = f"; for a batch of one: {name}[None]"
  raise UserError(f"{name} of shape {list(shape)}; expected [B, H, W, {channels}]{hint}")


def check_pixels(images: Array) -> None:
  """Raises a UserError for images neither uint8 nor floats near [-1, 1]; under jit, by dtype alone."""
  if images.dtype != jnp.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
    raise UserError(f"images of {images.dtype}; expected uint8, or floats in [-1, 1]")
  if images.dtype == jnp.uint8 or isinstance(images, jax.core.Tracer) or not images.size:
    return
  least, most = float(images.min()), float(images.max())
  if not -MOST_PIXEL <= least <= most <= MOST_PIXEL:
    raise UserError(
      f"images of floats from {least:g} to {most:g}; expected uint8, or floats in [-1, 1]: of 0 to 255, "
      "images / 127.5 - 1"
    )


def load(source: str | Path, **options: Any) -> tuple[Autoencoder, dict]:
  """The autoencoder and its parameters; `read_pretrained` documents the options."""
  network, codec = read_pretrained(source, **options)
  return Autoencoder(network), codec


def read_pretrained(
  source: str | Path,
  scaling_factor: float | None = None,
  shift_factor: float | None = None,
  allow_nan: bool = False,
) -> tuple[Any, dict]:
  """The network and the codec of a published autoencoder, its parameters in float32.

  `scaling_factor` and `shift_factor` are for a file without a config.json; Stable Diffusion 1 and 2
  have a scaling factor of 0.18215.

  Raises:
    UserError: the source does not exist, jldm has no such network, or tensors do not fit
      (see `rename.import_tensors`).
  """
  path = find_source(source)
  given = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
  given = {name: value for name, value in given.items() if value is not None}
  published = (from_folder if path.is_dir() else from_file)(path)
  network, config = published.network, published.config | given
  if "scaling_factor" not in config:
    raise UserError(
      f"{str(path)!r} does not say how its latents are scaled; give --scaling-factor: 0.18215 for Stable "
      "Diffusion 1 and 2, 0.13025 for SDXL, 1 for none"
    )
  mean, std = read_statistics(config, network.latent_channels)
  parts = fill_network(published, repr(str(path)), allow_nan)
  return network, parts | {"mean": jnp.array(mean), "std": jnp.array(std)}


class Published(NamedTuple):
  """What a source holds.   config: how its latents are scaled, if that is stated."""

  network: Any
  tensors: Mapping[str, Any]
  table: tuple  # of their names
  config: dict[str, Any]
  remedy: str  # if the tensors do not fit the network


def from_folder(path: Path) -> Published:
  return from_config(read_config(path / CONFIG), weights_file(path))


def from_config(config: dict[str, Any], file: Path) -> Published:
  """Reads a file of a network that a config describes."""
  tensors = flax_named(msgpack.tensors(file)) if file.suffix == ".msgpack" else safetensors.tensors(file)
  module = CLASSES[config["_class_name"]]
  network = module.network(config)
  table = vae.table(network, vae.family(tensors)) if module is vae else module.table(network)
  return Published(network, tensors, table, config, rename.OWN_CONFIG)


def from_file(path: Path) -> Published:
  """Reads a file of CompVis, or one of diffusers with its config.json beside it."""
  config = find_config(path)
  if config is not None:
    return from_config(read_config(config), path)
  tensors = safetensors.tensors(path)
  if not vae.is_compvis(tensors):
    raise UserError(
      f"{str(path)!r} has no {CONFIG} of diffusers beside it, and is no autoencoder of CompVis; put its "
      f"{CONFIG} there"
    )
  prefix = vae.FIRST_STAGE if any(name.startswith(vae.FIRST_STAGE) for name in tensors) else ""
  arrays = Renamed(tensors, {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)})
  network = vae.compvis_network({name: tensors.entry(prefix + name).shape for name in arrays})
  return Published(network, arrays, vae.table(network, "CompVis"), stated_scaling(tensors), COMPVIS)


def fill_network(published: Published, where: str, allow_nan: bool) -> dict:
  """The parameters and the other collections of a network."""
  network, arrays, table, _, remedy = published
  shapes = codecs.init_shapes(ImageCodec(network))
  like = dict(shapes["params"])
  if "codebook" in shapes["extra"]:
    like["codebook"] = {"vectors": shapes["extra"]["codebook"]["sums"]}
  params = dict(rename.import_tensors(table, like, arrays, OTHERS, allow_nan, where, remedy))
  book = params.pop("codebook", None)
  return {
    "params": params,
    "extra": {} if book is None else {"codebook": network.quantizer.state(book["vectors"])},
  }


def stated_scaling(tensors: safetensors.Tensors) -> dict[str, Any]:
  """The scale that a file without a config states of itself, as a config has it; {} if there is none."""
  name = "scale_factor"
  if name not in tensors or tensors.entry(name).dtype not in safetensors.DTYPES or tensors[name].size != 1:
    return {}
  return {"scaling_factor": float(tensors[name].reshape(()))}


def from_flax(network: Any, params: Mapping[str, Any], allow_nan: bool = False) -> dict:
  """The parameters of `network` from the tree that FlaxAutoencoderKL had: what an old checkpoint
  holds, in `params`' place.

  Raises:
    UserError: naming arrays that are missing, in surplus, misshapen, or not finite.
  """
  arrays = flax_named(flat.flatten(params))
  published = Published(network, arrays, vae.table(network, "old flax"), {}, FLAX_TREE)
  return fill_network(published, "the tree", allow_nan)["params"]


def flax_named(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
  """Arrays of a tree by the names of torch's modules: "encoder/down_blocks_0/…" as
  "encoder.down_blocks.0.…".
  """
  named = lambda path: re.sub(r"_(\d+)(?=/)", r".\1", path.removeprefix("params/")).replace("/", ".")
  return Renamed(arrays, {named(path): path for path in arrays})


class Renamed(Mapping):
  """Some of the arrays by other names, each read on access."""

  def __init__(self, arrays: Mapping[str, Any], names: Mapping[str, str]):
    """names: the new name of an array -> its name in `arrays`."""
    self._arrays, self._names = arrays, names

  def __getitem__(self, name: str) -> Any:
    return self._arrays[self._names[name]]

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)


def save(folder: str | Path, network: Any, codec: dict) -> None:
  """Writes what `diffusers` reads: config.json and diffusion_pytorch_model.safetensors.

  Raises:
    UserError: a network that diffusers does not have, or a folder that cannot be written.
  """
  folder = Path(folder)
  module = MODULES.get(type(network))
  if module is None:
    raise UserError(
      f"diffusers has no {type(network).__name__}; it has {', '.join(kind.__name__ for kind in MODULES)}"
    )
  config = module.config(network) | write_statistics(np.asarray(codec["mean"]), np.asarray(codec["std"]))
  tree = dict(codec["params"])
  if codec["extra"]:
    tree["codebook"] = {"vectors": network.quantizer.vectors(codec["extra"]["codebook"])}
  tensors = rename.publish(module.table(network), jax.tree.map(np.asarray, tree))
  counts = [
    name.replace("running_mean", "num_batches_tracked") for name in tensors if name.endswith(".running_mean")
  ]
  tensors |= {name: np.zeros((), np.int64) for name in counts}  # of a batch norm's steps, which says nothing
  save_folder(folder, config, tensors)


def read_config(path: Path) -> dict[str, Any]:
  """A config.json of one of CLASSES: its fields that are not null, and how its latents are scaled."""
  config = parse_config(path)
  name = config.get("_class_name") if isinstance(config, dict) else None
  if not isinstance(name, str) or name not in CLASSES:
    raise UserError(f"{str(path)!r} is of {str(name)[:40]!r}; expected one of {', '.join(CLASSES)}")
  stated = {name: value for name, value in config.items() if value is not None}
  return {"scaling_factor": CLASSES[name].SCALING} | stated
