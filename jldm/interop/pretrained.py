"""Published autoencoders as (network, codec), and back: from a folder, a file, or a name of the Hugging Face hub.

  network, codec = load("stabilityai/sd-vae-ft-mse")   # or a folder with config.json, or a file of CompVis
  save("folder", network, codec)                       # diffusers.AutoencoderKL.from_pretrained("folder")

A codec is as in `models.codec`: {"params", "extra", "mean" [C], "std" [C]}.
"""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError
from jldm.interop import rename, safetensors, vae
from jldm.models import codec as codecs

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS.replace(".safetensors", safetensors.INDEX)
CLASSES = ("AutoencoderKL", "VQModel")
FIRST_STAGE = "first_stage_model."  # of a whole model's file
OTHERS = r"(loss|model_ema|model|cond_stage_model|conditioner|denoiser)\..*|scale_factor|.*\.num_batches_tracked"
MOST_CONFIG = 2**20  # bytes


def load(
  source: str | Path, scaling_factor: float | None = None, shift_factor: float | None = None, allow_nan: bool = False
) -> tuple[Any, dict]:
  """The network and the codec of a published autoencoder, its parameters in float32.

  `scaling_factor` and `shift_factor` are for a file without a config.json: 0.18215 is that of Stable Diffusion 1 and 2.

  Raises:
    UserError: nothing there, a network that jldm does not have, or tensors that do not fit (`rename.load` has how).
  """
  path = found(source)
  config = read_config(path / CONFIG) if path.is_dir() else {}
  tensors = safetensors.tensors(weights(path) if path.is_dir() else path)
  where = repr(str(path))
  prefix = FIRST_STAGE if any(name.startswith(FIRST_STAGE) for name in tensors) else ""
  arrays = Prefixed(tensors, prefix)
  told = {"scaling_factor": scaling_factor, "shift_factor": shift_factor}
  config = config | {name: value for name, value in told.items() if value is not None}
  if path.is_dir():
    network = vae.read_config(config)
  else:
    network = vae.compvis_network({name: tensors.entry(prefix + name).shape for name in arrays})
    config = scaled(config, tensors, where)
  mean, std = vae.read_statistics(config, network.latent_channels)
  return network, filled(network, arrays, vae.family(arrays), where, allow_nan) | {"mean": jnp.array(mean), "std": jnp.array(std)}


def filled(network: Any, arrays: Mapping[str, Any], family: str, where: str, allow_nan: bool) -> dict:
  """The parameters and the other collections of a network, from arrays of a family."""
  shapes = codecs.shapes(network)
  like = {"params": shapes["params"]}
  if "codebook" in shapes["extra"]:
    like["params"] = like["params"] | {"codebook": {"vectors": shapes["extra"]["codebook"]["sums"]}}
  params = dict(rename.load(vae.table(network, family), like["params"], arrays, OTHERS, allow_nan, where))
  book = params.pop("codebook", None)
  return {"params": params, "extra": {} if book is None else {"codebook": network.quantizer.state(book["vectors"])}}


def scaled(config: dict, tensors: Mapping[str, Any], where: str) -> dict:
  """The config of a file that has none: what the caller said, or the file's own scale."""
  if "scaling_factor" in config:
    return config
  if "scale_factor" in tensors and tensors["scale_factor"].size == 1:
    return config | {"scaling_factor": float(tensors["scale_factor"].reshape(()))}
  raise UserError(
    f"{where} does not say how its latents are scaled; give --scaling-factor: 0.18215 for Stable Diffusion 1 and 2, "
    "0.13025 for SDXL, 1 for none"
  )


class Prefixed(Mapping):
  """The tensors whose names begin with `prefix`, without it."""

  def __init__(self, tensors: Mapping[str, Any], prefix: str):
    self._tensors, self._prefix = tensors, prefix

  def __getitem__(self, name: str) -> Any:
    return self._tensors[self._prefix + name]

  def __iter__(self):
    return (name.removeprefix(self._prefix) for name in self._tensors if name.startswith(self._prefix))

  def __len__(self) -> int:
    return sum(1 for _ in self)


def save(folder: str | Path, network: Any, codec: dict) -> None:
  """Writes what `diffusers` reads: config.json and diffusion_pytorch_model.safetensors.

  Raises:
    UserError: a network that diffusers does not have, or a folder that cannot be written.
  """
  folder = Path(folder)
  config = vae.write_config(network, np.asarray(codec["mean"]), np.asarray(codec["std"]))
  tree = dict(codec["params"])
  if codec["extra"]:
    tree["codebook"] = {"vectors": network.quantizer.vectors(codec["extra"]["codebook"])}
  tensors = rename.publish(vae.table(network), jax.tree.map(np.asarray, tree))
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
  except OSError as error:
    raise UserError(f"cannot write {str(folder)!r}: {error.strerror}; choose another") from error
  safetensors.write(folder / WEIGHTS, tensors, {"format": "pt"})


def found(source: str | Path) -> Path:
  """The folder with a config.json, or the file, that a source names: the vae of a pipeline's folder too."""
  path = Path(source)
  if path.is_dir():
    for folder in (path, path / "vae"):
      if (folder / CONFIG).is_file():
        return folder
    raise UserError(f"{str(source)!r} has no {CONFIG}; expected a folder that diffusers saved, or a .safetensors file")
  if path.exists():
    return path
  raise UserError(f"{str(source)!r} does not exist; expected a folder that diffusers saved, or a .safetensors file")


def weights(folder: Path) -> Path:
  """The file with the tensors of a folder, or the index of its parts."""
  for name in (WEIGHTS, INDEX):
    if (folder / name).exists():
      return folder / name
  pickles = sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
  if pickles:
    raise UserError(safetensors.pickle_told(pickles[0]))
  raise UserError(f"{str(folder)!r} has neither {WEIGHTS} nor {INDEX}; get it there")


def read_config(path: Path) -> dict[str, Any]:
  """A config.json of one of CLASSES."""
  try:
    with path.open("rb") as file:
      config = json.loads(file.read(MOST_CONFIG))
  except OSError as error:
    raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error
  except (ValueError, RecursionError) as error:
    raise UserError(f"{str(path)!r} is no JSON, or longer than {MOST_CONFIG} bytes; get it anew") from error
  if not isinstance(config, dict) or config.get("_class_name") not in CLASSES:
    name = str(config.get("_class_name"))[:40] if isinstance(config, dict) else "nothing"
    raise UserError(f"{str(path)!r} is of {name}; expected one of {', '.join(CLASSES)}")
  return config
