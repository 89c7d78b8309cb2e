"""Loads published autoencoders from a folder, a file or the Hugging Face hub, and saves ours as diffusers'
are.

  autoencoder, params = load("stabilityai/sd-vae-ft-mse")  # or a folder with config.json, or a file of
  CompVis
  latents = autoencoder.scaled(params, autoencoder.encode(params, images).sample(keys))
  images = autoencoder.decode(params, autoencoder.raw(params, latents))

`params` is a tree as in `models.codecs.codec`: {"params", "extra", "mean" [C], "std" [C]}.  A
config.json says how raw latents become those of a denoiser,

  (1)  (raw - shift_factor) scaling_factor   or   (raw - latents_mean) / latents_std scaling_factor

and ours are (raw - mean) / std: they come from there and are never measured.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import re
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.interop import dc, flat, msgpack, rename, safetensors, tiny, vae
from jldm.models.autoencoders.dc import DCAutoencoder
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.posterior import Gaussian
from jldm.models.autoencoders.tiny import TinyAutoencoder
from jldm.models.autoencoders.vq import VQAutoencoder
from jldm.models.codecs import codec as codecs
from jldm.models.codecs.images import ImageCodec, variables

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
FLAX = "diffusion_flax_model.msgpack"
PART = "vae"  # of a pipeline's folder
HUB = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)  # owner/name
SECONDS = 10  # to wait for the hub
INDEX = WEIGHTS.replace(".safetensors", safetensors.INDEX)
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
MOST_CONFIG = 2**20  # bytes
MOST = 1e30  # of numbers in a config.json

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
    """images [B, H, W, C], uint8 or in [-1, 1] -> the posterior of raw latents [B, h, w, c]."""
    return self.codec.encode(params, {"image": images})

  def decode(self, params: dict, latents: Array) -> Array:
    """Raw latents [B, h, w, c] -> images [B, H, W, C], near [-1, 1]."""
    return self.network.apply(variables(params), latents, method="decode")

  def scaled(self, params: dict, latents: Array) -> Array:
    """Raw latents as a denoiser knows them: equation (1)."""
    return codecs.standardised(params, latents)

  def raw(self, params: dict, latents: Array) -> Array:
    """The inverse of `scaled`."""
    return codecs.destandardised(params, latents)


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
  network, tensors, table, config = (from_folder if path.is_dir() else from_file)(path, given)
  mean, std = read_statistics(config, network.latent_channels)
  parts = fill_network(network, tensors, table, repr(str(path)), allow_nan)
  return network, parts | {"mean": jnp.array(mean), "std": jnp.array(std)}


def from_folder(path: Path, given: dict) -> tuple[Any, Mapping, tuple, dict]:
  """Reads a folder -> (network, its tensors by name, the table of these names, the config with what is
  given).
  """
  config, file = read_config(path / CONFIG), weights_file(path)
  tensors = flax_named(msgpack.tensors(file)) if file.suffix == ".msgpack" else safetensors.tensors(file)
  module = CLASSES[config["_class_name"]]
  network = module.network(config)
  table = vae.table(network, vae.family(tensors)) if module is vae else module.table(network)
  return network, tensors, table, {"scaling_factor": module.SCALING} | config | given


def from_file(path: Path, given: dict) -> tuple[Any, Mapping, tuple, dict]:
  """Reads a file of CompVis; as `from_folder`."""
  tensors = safetensors.tensors(path)
  prefix = vae.FIRST_STAGE if any(name.startswith(vae.FIRST_STAGE) for name in tensors) else ""
  arrays = Renamed(tensors, {name.removeprefix(prefix): name for name in tensors if name.startswith(prefix)})
  network = vae.compvis_network({name: tensors.entry(prefix + name).shape for name in arrays})
  return network, arrays, vae.table(network, "CompVis"), add_scaling(given, tensors, repr(str(path)))


def fill_network(network: Any, arrays: Mapping[str, Any], table: tuple, where: str, allow_nan: bool) -> dict:
  """The parameters and the other collections of a network."""
  shapes = codecs.init_shapes(ImageCodec(network))
  like = dict(shapes["params"])
  if "codebook" in shapes["extra"]:
    like["codebook"] = {"vectors": shapes["extra"]["codebook"]["sums"]}
  params = dict(rename.import_tensors(table, like, arrays, OTHERS, allow_nan, where))
  book = params.pop("codebook", None)
  return {
    "params": params,
    "extra": {} if book is None else {"codebook": network.quantizer.state(book["vectors"])},
  }


def add_scaling(config: dict, tensors: Mapping[str, Any], where: str) -> dict:
  """The config of a file that has none: what the caller gives, or the file's own scale."""
  if "scaling_factor" in config:
    return config
  if "scale_factor" in tensors and tensors["scale_factor"].size == 1:
    return config | {"scaling_factor": float(tensors["scale_factor"].reshape(()))}
  raise UserError(
    f"{where} does not say how its latents are scaled; give --scaling-factor: 0.18215 for Stable "
    f"Diffusion 1 and 2, "
    "0.13025 for SDXL, 1 for none"
  )


def from_flax(network: Any, params: Mapping[str, Any], allow_nan: bool = False) -> dict:
  """The parameters of `network` from the tree that FlaxAutoencoderKL had: what an old checkpoint
  holds, in `params`' place.

  Raises:
    UserError: naming arrays that are missing, in surplus, misshapen, or not finite.
  """
  arrays = flax_named(flat.flatten(params))
  return fill_network(network, arrays, vae.table(network, "old flax"), "the tree", allow_nan)["params"]


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
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
  except OSError as error:
    raise UserError(f"cannot write {str(folder)!r}: {error.strerror}; choose another") from error
  safetensors.write(folder / WEIGHTS, tensors, {"format": "pt"})


def find_source(source: str | Path) -> Path:
  """The folder with a config.json, or the file, that a source names: the vae of a pipeline's folder too."""
  path = Path(source)
  if not path.exists() and HUB.fullmatch(str(source)):
    path = download_folder(str(source))
  if path.is_dir():
    if not is_folder(path):
      raise UserError(
        f"{str(source)!r} has no {CONFIG}; expected a folder that diffusers saved, or a .safetensors file"
      )
    return path if (path / CONFIG).is_file() else path / PART
  if path.exists():
    return path
  raise UserError(
    f"{str(source)!r} does not exist; expected a folder that diffusers saved, a .safetensors file or "
    f"owner/name"
  )


def is_folder(path: Path) -> bool:
  """Whether a folder is an autoencoder's, or a pipeline's with one."""
  return any((folder / CONFIG).is_file() for folder in (path, path / PART))


def download_folder(name: str) -> Path:
  """The folder of a model of the Hugging Face hub: its autoencoder alone, from the cache where it is there.

  Raises:
    UserError: huggingface_hub is not installed, or the model cannot be got.
  """
  try:
    import huggingface_hub
  except ImportError as error:
    raise UserError(
      f"{name!r} does not exist here, and huggingface_hub, which would download it, is not installed; "
      "run pip install huggingface_hub"
    ) from error
  files = [
    folder + file
    for folder in ("", f"{PART}/")
    for file in (CONFIG, WEIGHTS, INDEX, WEIGHTS.replace(".", "-*."), FLAX)
  ]
  try:
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=files, etag_timeout=SECONDS))
  # Its own errors and those of its HTTP client, which for a proxy or a dropped connection are no OSError.
  except Exception as error:
    reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
    raise UserError(
      f"{name!r} is not here and cannot be downloaded from the hub; check the name and the network, "
      f"or give a folder ({reason})"
    ) from error


def weights_file(folder: Path) -> Path:
  """The file with the tensors of a folder, or the index of its parts."""
  for name in (WEIGHTS, INDEX, FLAX):
    if (folder / name).exists():
      return folder / name
  pickles = sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
  if pickles:
    raise UserError(safetensors.pickle_told(pickles[0]))
  raise UserError(f"{str(folder)!r} has none of {WEIGHTS}, {INDEX}, {FLAX}; get it there")


def read_config(path: Path) -> dict[str, Any]:
  """A config.json of one of CLASSES."""
  try:
    with path.open("rb") as file:
      config = json.loads(file.read(MOST_CONFIG))
  except OSError as error:
    raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{str(path)!r} is no JSON, or longer than {MOST_CONFIG} bytes; get it anew") from error
  name = config.get("_class_name") if isinstance(config, dict) else None
  if not isinstance(name, str) or name not in CLASSES:
    raise UserError(f"{str(path)!r} is of {str(name)[:40]!r}; expected one of {', '.join(CLASSES)}")
  return config


def read_statistics(config: Mapping[str, Any], channels: int) -> tuple[np.ndarray, np.ndarray]:
  """Equation (1): mean and std [C] of raw latents.

  Raises:
    UserError: numbers that are none, not finite, or a scale that is not positive.
  """

  def vector(name: str, default: float) -> np.ndarray:
    value = default if config.get(name) is None else config[name]
    values = value if isinstance(value, (list, tuple)) else [value] * channels
    if len(values) != channels or not all(type(one) in (int, float) and abs(one) < MOST for one in values):
      raise UserError(
        f"config.json has {name}={str(value)[:80]}; expected a finite number, or {channels} of them"
      )
    return np.array(values, np.float64)

  scaling, std = vector("scaling_factor", 1.0), vector("latents_std", 1.0)
  if min(*scaling, *std) < 1 / MOST or max(std / scaling) > MOST:
    raise UserError(
      f"config.json has scaling_factor={scaling[0]} and latents_std={std.tolist()}; expected positive numbers"
    )
  mean = vector("shift_factor" if config.get("latents_mean") is None else "latents_mean", 0.0)
  return np.float32(mean), np.float32(std / scaling)


def write_statistics(mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
  """Equation (1) the other way: one number where all channels share it."""
  shared = all(len(set(np.asarray(values).tolist())) == 1 for values in (mean, std))
  if not shared:
    return {
      "scaling_factor": 1.0,
      "latents_mean": np.asarray(mean).tolist(),
      "latents_std": np.asarray(std).tolist(),
    }
  shift = {"shift_factor": shortest(mean[0], np.float32)} if mean[0] else {}
  return {"scaling_factor": shortest(1 / np.float64(std[0]), lambda scaling: np.float32(1 / scaling))} | shift


def shortest(value: Any, kept: Callable[[float], Any]) -> float:
  """The shortest decimal that `kept` maps to the same number: 0.18215, not 0.18215000629425049."""
  return next(
    short for digits in range(1, 18) if kept(short := float(f"{value:.{digits}g}")) == kept(float(value))
  )
