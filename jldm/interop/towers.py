"""Loads published text towers, CLIP's and T5's, with their tokenizers, and saves them as transformers does.

  tower, params = load_tower("stable-diffusion-v1-5/text_encoder")
  ids, mask = tower.tokenizer(["a red cat", "two dogs"])
  tokens, pooled = tower.encode(params, ids)

A source is a folder of transformers with config.json and model.safetensors, a folder of OpenCLIP with
open_clip_config.json, the folder of a pipeline, or the file of a whole model of Stable Diffusion.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jldm.core.errors import UserError, printable
from jldm.interop import clip, locate, pretrained, rename, safetensors, t5
from jldm.models.towers.clip import CLIPText
from jldm.models.towers.t5 import T5Encoder
from jldm.models.towers.tokenizers import FILES as TOKENIZER_FILES, Tokenizer, check_vocabulary
from jldm.models.towers.tower import Encoded

CONFIG, OPEN_CONFIG, WEIGHTS = "config.json", "open_clip_config.json", "model.safetensors"
WEIGHT_FILES = (  # of a folder, in the order in which one of them is taken
  WEIGHTS,
  f"model{safetensors.INDEX}",
  "model.fp16.safetensors",
  "model.safetensors.index.fp16.json",
  "open_clip_model.safetensors",
  "open_clip_pytorch_model.safetensors",
)
MODULES = {"clip_text_model": clip, "clip": clip, "t5": t5}  # by model_type of config.json
OURS = {CLIPText: clip, T5Encoder: t5}
PART = "text_encoder"  # of a pipeline's folder
WHOSE = "a text encoder's"


@dataclasses.dataclass(frozen=True)
class TextTower:
  """A published text tower.   tokenizer: None if the source has none."""

  network: Any  # linen Module
  tokenizer: Tokenizer | None

  def encode(self, params: dict, ids: Any, mask: Any = None) -> Encoded:
    """ids int [B, L], mask bool [B, L] of what attention may see (by default all) -> tokens [B, L, D] and
    pooled [B, P]; may be jitted.
    """
    return self.network.apply({"params": params}, jnp.asarray(ids), mask)


class Published(NamedTuple):
  """What a source holds."""

  network: Any
  tensors: Mapping[str, Any]
  table: tuple  # of their names
  others: str  # a pattern of names that are left out
  file: Path


def load_tower(
  source: str | Path,
  part: str = "",
  allow_nan: bool = False,
  dtype: str = "float32",
  place: rename.Place = rename.on_default_device,
  **fields: Any,
) -> tuple[TextTower, dict]:
  """The text tower and its parameters.

  part: of a pipeline's folder which one, "text_encoder" by default; of a whole model's file what comes
    before the tower's names, if there are several.
  dtype: of parameters and products, "float32" or "bfloat16".
  place: puts an array, by its name, on devices: `functools.partial(sharding.place_named, mesh)` splits them.
  fields: other values of the network's fields, such as skip=1, final_norm=False for Stable Diffusion XL.

  Raises:
    UserError: the source does not exist, jldm has no such network, tensors or tokenizer do not fit.
  """
  rename.check_dtype(dtype)
  published = find_published(Path(source), part)
  network = change_fields(published.network, fields | {"dtype": dtype})
  like = rename.in_dtype(init_shapes(network), dtype)
  where = repr(str(published.file))
  params = rename.import_tensors(
    published.table, like, published.tensors, published.others, allow_nan, where, place=place
  )
  tokenizer = find_tokenizer(published.file.parent)
  if tokenizer is not None:
    check_vocabulary(tokenizer, network)
  return TextTower(network, tokenizer), params


def change_fields(network: Any, fields: Mapping[str, Any]) -> Any:
  """The network with other values of its fields; UserError for a field that it does not have."""
  known = [field.name for field in dataclasses.fields(network) if field.name not in ("parent", "name")]
  if unknown := sorted(set(fields) - set(known)):
    raise UserError(f"{type(network).__name__} has no {unknown[0]!r}; expected some of {', '.join(known)}")
  return network.clone(**fields)


def init_shapes(network: Any) -> Any:
  """The parameters of a text tower as shapes, nothing allocated."""
  return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def find_published(path: Path, part: str = "") -> Published:
  """The tower that a source names, its tensors not yet read.

  Raises:
    UserError: as `load_tower`.
  """
  if path.is_dir():
    folder = find_folder(path, part)
    return from_folder(folder, weights_file(folder))
  if not path.exists():
    raise UserError(
      f"{str(path)!r} does not exist; expected a folder of a text encoder with {CONFIG} and {WEIGHTS}, or a "
      ".safetensors file"
    )
  if path.name in WEIGHT_FILES and is_tower(path.parent):
    return from_folder(path.parent, path)
  return from_file(path, part)


def find_folder(path: Path, part: str = "") -> Path:
  """The folder of a text tower that a folder is, or that a pipeline's folder has as its part."""
  if not part and is_tower(path):
    return path
  inner = path / (part or PART)
  if is_tower(inner):
    return inner
  has = sorted(each.name for each in path.iterdir() if each.is_dir() and is_tower(each))
  hint = f"; its text encoders are {', '.join(has)}" if has else ""
  raise UserError(
    f"{str(path)!r} has no text encoder in {part or PART!r}: expected {CONFIG} of one of "
    f"{', '.join(MODULES)}, or {OPEN_CONFIG}{hint}"
  )


def is_tower(folder: Path) -> bool:
  """Whether a folder has a config of a text tower, even of a kind that is not known here."""
  if (folder / OPEN_CONFIG).is_file():
    return True
  if not (folder / CONFIG).is_file():
    return False
  try:
    config = locate.parse_config(folder / CONFIG, WHOSE)
  except UserError:
    return False
  return isinstance(config, dict) and isinstance(config.get("model_type"), str)


def weights_file(folder: Path) -> Path:
  """The file with the tensors of a folder, or the index of its parts; UserError if there is none."""
  for name in WEIGHT_FILES:
    if (folder / name).exists():
      return folder / name
  safetensors.refuse_pickles(folder)
  raise UserError(f"{str(folder)!r} has no {WEIGHTS}, its index or fp16 variant; put one there")


def read_config(folder: Path) -> dict[str, Any]:
  """The config.json of a text tower of transformers; UserError for one of another kind."""
  config = locate.parse_config(folder / CONFIG, WHOSE)
  kind = config.get("model_type") if isinstance(config, dict) else None
  if kind not in MODULES:
    raise UserError(
      f"{str(folder / CONFIG)!r} has model_type={printable(str(kind)[:40])!r}; expected one of "
      f"{', '.join(MODULES)}"
    )
  return config


def from_folder(folder: Path, file: Path) -> Published:
  """A folder of transformers or of OpenCLIP."""
  tensors = safetensors.tensors(file)
  is_open = not (folder / CONFIG).is_file() or (folder / OPEN_CONFIG).is_file()
  if not is_open and MODULES[read_config(folder)["model_type"]] is t5:
    network = t5.network(read_config(folder))
    return Published(network, with_shared(tensors), t5.table(network), t5.OTHERS, file)
  before, family = one_tower(tensors, "", file)
  arrays = pretrained.Renamed(tensors, clip.canonical_names(tensors, before, family))
  if is_open and family == "OpenCLIP":
    config = locate.parse_config(folder / OPEN_CONFIG, WHOSE)
    network = clip.open_clip_network(as_object(config, OPEN_CONFIG), "text_projection" in arrays)
  else:
    network = clip.network(read_config(folder), "text_projection.weight" in arrays)
  return Published(network, arrays, clip.table(network, family), clip.OTHERS, file)


def as_object(config: Any, name: str) -> dict[str, Any]:
  if not isinstance(config, dict):
    raise UserError(f"{name} has a {type(config).__name__}; expected a JSON object")
  return config


def with_shared(tensors: safetensors.Tensors) -> Mapping[str, Any]:
  """T5's tensors with the embeddings by the name that they have in most files."""
  names = {name: name for name in tensors}
  if "shared.weight" not in names and "encoder.embed_tokens.weight" in names:
    names["shared.weight"] = names.pop("encoder.embed_tokens.weight")
  return pretrained.Renamed(tensors, names)


def from_file(path: Path, part: str) -> Published:
  """A tower in the file of a whole model of Stable Diffusion."""
  tensors = safetensors.tensors(path)
  before, family = one_tower(tensors, part, path)
  names = clip.canonical_names(tensors, before, family)
  network = clip.network_by_shapes({name: tensors.entry(full).shape for name, full in names.items()}, family)
  arrays = pretrained.Renamed(tensors, names)
  return Published(network, arrays, clip.table(network, family), clip.OTHERS, path)


def one_tower(tensors: Mapping[str, Any], part: str, file: Path) -> tuple[str, str]:
  """(what comes before its names, family) of the one text transformer of CLIP in a file, or of that of
  `part`.
  """
  found = clip.find_towers(tensors)
  wanted = {before: family for before, family in found.items() if not part or before.strip(".") == part}
  if len(wanted) == 1:
    return next(iter(wanted.items()))
  has = ", ".join(repr(before.strip(".")) for before in found)
  if not found:
    raise UserError(f"{str(file)!r} has no text transformer of CLIP; expected one of {CONFIG}'s kind")
  raise UserError(f"{str(file)!r} has text transformers {has}; give part=, one of these")


def find_tokenizer(folder: Path) -> Tokenizer | None:
  """The tokenizer of a tower's folder, in it or, of a pipeline, beside it; None if there is none."""
  beside = folder.with_name(folder.name.replace("text_encoder", "tokenizer"))
  for each in (folder, folder / "tokenizer", beside):
    if each.is_dir() and any((each / name).is_file() for name in TOKENIZER_FILES):
      return Tokenizer(str(each))
  return None


def copy_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
  """Copies the files of a tokenizer; UserError if they cannot be written."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*TOKENIZER_FILES, "tokenizer_config.json"):
      if (Path(tokenizer.path) / name).is_file():
        shutil.copyfile(Path(tokenizer.path) / name, folder / name)
  except OSError as error:
    raise UserError(f"cannot write {str(folder)!r}: {error.strerror}; choose another") from error


def save_tower(folder: str | Path, network: Any, params: dict) -> None:
  """Writes what transformers reads: config.json and model.safetensors.

  Raises:
    UserError: a network that transformers does not have, or a folder that cannot be written.
  """
  folder, module = Path(folder), OURS.get(type(network))
  if module is None:
    raise UserError(
      f"transformers has no {type(network).__name__}; it has {', '.join(each.__name__ for each in OURS)}"
    )
  config = module.config(network)
  tensors = rename.publish(module.table(network), jax.tree.map(np.asarray, params))
  tensors = {module.saved_name(name): value for name, value in tensors.items()}
  locate.save_folder(folder, config, tensors, WEIGHTS)
