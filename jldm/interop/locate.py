"""Where a published autoencoder is: its folder, its file of weights and its config.json, or the hub."""

from collections.abc import Mapping
import json
from pathlib import Path
import re
import textwrap
from typing import Any

from jldm.core.errors import MOST_REASON, UserError, printable
from jldm.interop import safetensors, vae

CONFIG, MODEL = "config.json", "diffusion_pytorch_model"
WEIGHTS, INDEX = f"{MODEL}.safetensors", f"{MODEL}{safetensors.INDEX}"
FLAX = "diffusion_flax_model.msgpack"
VARIANTS = ("fp16", "bf16")  # of files of half the size; one in full precision comes before them
FULL_FILES = (WEIGHTS, INDEX, FLAX)  # in the order in which one of them is taken
HALF_FILES = tuple(
  name
  for variant in VARIANTS
  for name in (
    f"{MODEL}.{variant}.safetensors",
    f"{MODEL}.safetensors.index.{variant}.json",
    f"{MODEL}.{variant}{safetensors.INDEX}",
  )
)
FULL_PARTS = (f"{MODEL}-*.safetensors",)
HALF_PARTS = tuple(f"{MODEL}.{variant}-*.safetensors" for variant in VARIANTS)
PART = "vae"  # of a pipeline's folder
HUB = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)  # owner/name
SECONDS = 10  # to wait for the hub
MOST_CONFIG = 2**20  # bytes


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

  def download(*files: str) -> Path:
    patterns = [folder + file for folder in ("", f"{PART}/") for file in files]
    return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, etag_timeout=SECONDS))

  try:
    path = download(CONFIG, *FULL_FILES, *FULL_PARTS)
    if all(find_weights(folder) is None for folder in (path, path / PART)):
      path = download(*HALF_FILES, *HALF_PARTS)
    return path
  # Its own errors and those of its HTTP client, which for a proxy or a dropped connection are no OSError.
  except Exception as error:
    reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
    raise UserError(
      f"{name!r} is not here and cannot be downloaded from the hub; check the name and the network, "
      f"or give a folder ({reason})"
    ) from error


def find_weights(folder: Path) -> Path | None:
  """The file with the tensors of a folder, or the index of its parts: full precision first."""
  files = (folder / name for name in (*FULL_FILES, *HALF_FILES))
  return next((file for file in files if file.exists()), None)


def weights_file(folder: Path) -> Path:
  """As `find_weights`; UserError if there is none."""
  file = find_weights(folder)
  if file is not None:
    return file
  there = sorted(path for path in folder.iterdir() if path.is_file())
  if others := [path.name for path in there if path.suffix == ".safetensors"]:
    raise UserError(
      f"{str(folder)!r} has {others[0][:80]!r}, none of {WEIGHTS}, its fp16 and bf16 variants, or their "
      "indexes; give the path of that file if it is the autoencoder's"
    )
  safetensors.refuse_pickles(folder)
  raise UserError(
    f"{str(folder)!r} has none of {WEIGHTS}, its fp16 and bf16 variants, their indexes, {FLAX}; put one there"
  )


def find_config(file: Path) -> Path | None:
  """The config.json of diffusers beside a file of weights, which describes it.

  A file of CompVis or of jldm describes itself, unless it has a name that diffusers gives.
  """
  config = file.parent / CONFIG
  if not config.is_file() or not config_class(config):
    return None
  named = file.name in (*FULL_FILES, *HALF_FILES) or file.suffix == ".msgpack"
  return config if named or not describes_itself(file) else None


def describes_itself(file: Path) -> bool:
  """Whether a file, or an index, is of CompVis, or was written by jldm convert."""
  if vae.is_compvis(safetensors.tensors(file)):
    return True
  is_index = safetensors.INDEX_NAME.fullmatch(file.name)
  return not is_index and safetensors.read_header(file).metadata.get("format") == "jldm"


def config_class(path: Path) -> str:
  """The class that a config.json of diffusers is of; "" if it is another JSON, or none."""
  try:
    config = parse_config(path)
  except UserError:
    return ""
  name = config.get("_class_name") if isinstance(config, dict) else None
  return name if isinstance(name, str) else ""


def parse_config(path: Path, whose: str = "an autoencoder's") -> Any:
  """The JSON of a config.json; `whose` it is, errors say."""
  try:
    with path.open("rb") as file:
      text = file.read(MOST_CONFIG + 1)
    if len(text) > MOST_CONFIG:
      raise UserError(f"{str(path)!r} has more than {MOST_CONFIG} bytes; expected {whose} {CONFIG}")
    return json.loads(text)
  except OSError as error:
    raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error
  except (ValueError, RecursionError) as error:
    reason = printable(str(error), MOST_REASON)
    raise UserError(f"{str(path)!r} is no JSON ({reason}); expected {whose} {CONFIG}") from error


def save_json(path: Path, data: Mapping[str, Any]) -> None:
  """Writes a JSON object and the folders above it; UserError if they cannot be written."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")
  except OSError as error:
    raise UserError(f"cannot write {str(path.parent)!r}: {error.strerror}; choose another") from error


def save_folder(
  folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], weights: str = WEIGHTS
) -> None:
  """Writes the folder of a network: config.json and a file of weights.

  Raises:
    UserError: it cannot be written.
  """
  save_json(folder / CONFIG, config)
  safetensors.write(folder / weights, tensors, {"format": "pt"})
