"""Converts CLIP's text transformers to ours and back, by the names of transformers and of OpenCLIP.

A config.json of transformers, or the open_clip_config.json of OpenCLIP, describes the network.  In a whole
model of Stable Diffusion the shapes of the tensors do.
"""

from collections.abc import Iterable, Mapping
import re
from typing import Any

from jldm.core.errors import UserError
from jldm.interop import rename
from jldm.interop.config import config_choice, config_number, config_real, refused
from jldm.interop.rename import DENSE, NORM, Axes
from jldm.models.towers.clip import CLIPText

MOST_LAYERS, MOST_IDS, MOST_LENGTH = 256, 2**20, 2**16
HEAD_WIDTH = 64  # of every published text transformer of CLIP
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}  # of transformers -> ours
GREATEST = 2  # the end token that old configs of transformers have, and that means the greatest id
TABLE = Axes("vd", "vd")  # of embeddings
KERNEL, BIAS = Axes("io", "oi"), Axes("o", "o")


def block(norm: str, attention: tuple, mlp: tuple[str, str, str]) -> tuple:
  """The rows of a block from their names: of norms but for their number, of attention, of the MLP."""
  name, first, second = mlp
  return (
    ("norm1", f"{norm}1", NORM),
    attention,
    ("norm2", f"{norm}2", NORM),
    ("mlp", name, (("in", first, DENSE), ("out", second, DENSE))),
  )


SPLIT = (("qkv", ("q_proj", "k_proj", "v_proj"), DENSE), ("out", "out_proj", DENSE))
JOINED = (
  ("qkv", "", (("kernel", "in_proj_weight", KERNEL), ("bias", "in_proj_bias", BIAS))),
  ("out", "out_proj", DENSE),
)
ROWS = {  # by family of files, without what comes before all names
  "transformers": (
    ("tokens/embedding", "embeddings.token_embedding.weight", TABLE),
    ("places", "embeddings.position_embedding.weight", TABLE),
    (
      "block{i}",
      "encoder.layers.{i}",
      block("layer_norm", ("attention", "self_attn", SPLIT), ("mlp", "fc1", "fc2")),
    ),
    ("norm", "final_layer_norm", NORM),
    ("projection", "text_projection", DENSE),
  ),
  "OpenCLIP": (
    ("tokens/embedding", "token_embedding.weight", TABLE),
    ("places", "positional_embedding", TABLE),
    (
      "block{i}",
      "transformer.resblocks.{i}",
      block("ln_", ("attention", "attn", JOINED), ("mlp", "c_fc", "c_proj")),
    ),
    ("norm", "ln_final", NORM),
    ("projection/kernel", "text_projection", Axes("io", "io")),
  ),
}
FIRST = {  # by family, the tensor of embeddings: what comes before it comes before all
  "transformers": "embeddings.token_embedding.weight",
  "OpenCLIP": "token_embedding.weight",
}
OTHERS = (  # tensors that are no text transformer's
  r"(embeddings|text_model\.embeddings)\.position_ids|vision_model\..*|visual_projection\..*"
  r"|visual\..*|logit_scale|logit_bias|attn_mask"
)


def table(network: CLIPText, family: str = "transformers") -> tuple:
  """Where the arrays of a network are in files of a family."""
  return rename.number_table(ROWS[family], [{"i": i} for i in range(network.depth)])


def find_towers(names: Iterable[str]) -> dict[str, str]:
  """The text transformers of CLIP among the tensors of a file: what comes before their names -> family."""
  found = {}
  for name in names:
    for family, first in FIRST.items():  # that of OpenCLIP ends the other one too
      before = name.removesuffix(first)
      if before != name and (not before or before.endswith(".")):
        found[before.removesuffix("text_model.")] = family
        break
  return found


def canonical_names(names: Iterable[str], before: str, family: str) -> dict[str, str]:
  """Names as ROWS has them -> names in a file, of the tensors of one tower."""
  inner = {name.removeprefix(before): name for name in names if name.startswith(before)}
  if family == "transformers":
    inner = {name.removeprefix("text_model."): full for name, full in inner.items()}
  return inner


def saved_name(name: str) -> str:
  """The name of a tensor in a file that every version of transformers reads."""
  return name if name.startswith("text_projection") else f"text_model.{name}"


def network(config: Mapping[str, Any], projection: bool = False) -> CLIPText:
  """The network of a config.json of transformers; `projection`: whether the file has a text projection.

  Raises:
    UserError: a value that is none, or that our network does not have.
  """
  config = text_config(config)
  width = config_number(config, "hidden_size", 512)
  heads = config_number(config, "num_attention_heads", 8)
  check_heads("num_attention_heads", heads, width)
  end = config_number(config, "eos_token_id", 49407, MOST_IDS)
  return CLIPText(
    vocabulary=config_number(config, "vocab_size", 49408, MOST_IDS),
    length=config_number(config, "max_position_embeddings", 77, MOST_LENGTH),
    width=width,
    depth=config_number(config, "num_hidden_layers", 12, MOST_LAYERS),
    heads=heads,
    hidden=config_number(config, "intermediate_size", 2048, 2**16),
    activation=ACTIVATIONS[config_choice(config, "hidden_act", "quick_gelu", ACTIVATIONS)],
    projection=config_number(config, "projection_dim", 512) if projection else 0,
    end_token=0 if end == GREATEST else end,
    epsilon=config_real(config, "layer_norm_eps", 1e-5, 1.0),
  )


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """The part of a config.json that describes the text transformer: of a CLIPModel that is `text_config`."""
  if config.get("model_type") != "clip":
    return config
  inner = config.get("text_config")
  if not isinstance(inner, dict):
    raise refused("text_config", inner, "the fields of CLIP's text transformer")
  return {"projection_dim": config.get("projection_dim")} | inner


def check_heads(name: str, heads: int, width: int) -> None:
  if width % heads:
    raise refused(name, heads, f"a divisor of the width {width}")


def config(network: CLIPText) -> dict[str, Any]:
  """The config.json of transformers of a network; the inverse of `network`.

  Raises:
    UserError: an activation that transformers' CLIP has under no name.
  """
  if network.activation not in ACTIVATIONS.values():
    raise UserError(f"activation={network.activation!r}; transformers' CLIP has {', '.join(ACTIVATIONS)}")
  return {
    "architectures": ["CLIPTextModelWithProjection" if network.projection else "CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": network.vocabulary,
    "max_position_embeddings": network.length,
    "hidden_size": network.width,
    "num_hidden_layers": network.depth,
    "num_attention_heads": network.heads,
    "intermediate_size": network.hidden,
    "hidden_act": network.activation,
    "layer_norm_eps": network.epsilon,
    "projection_dim": network.projection or network.width,
    "eos_token_id": network.end_token or GREATEST,
  }


def open_clip_network(config: Mapping[str, Any], projection: bool = True) -> CLIPText:
  """The network of an open_clip_config.json.

  Raises:
    UserError: a value that is none, or that our network does not have.
  """
  model = config.get("model_cfg", config)
  text = model.get("text_cfg") if isinstance(model, dict) else None
  if not isinstance(text, dict):
    raise refused("model_cfg.text_cfg", text, "the fields of OpenCLIP's text transformer")
  if "hf_model_name" in text:
    raise refused("text_cfg.hf_model_name", text["hf_model_name"], "a text transformer of OpenCLIP itself")
  width = config_number(text, "width", 512)
  heads = config_number(text, "heads", 8)
  check_heads("text_cfg.heads", heads, width)
  quick = config_choice(model, "quick_gelu", False, (True, False))
  ratio = config_real(text, "mlp_ratio", 4.0, 64.0)
  return CLIPText(
    vocabulary=config_number(text, "vocab_size", 49408, MOST_IDS),
    length=config_number(text, "context_length", 77, MOST_LENGTH),
    width=width,
    depth=config_number(text, "layers", 12, MOST_LAYERS),
    heads=heads,
    hidden=int(ratio * width),
    activation="quick_gelu" if quick else "gelu",
    projection=config_number(model, "embed_dim", 512) if projection else 0,
    end_token=0,
  )


def network_by_shapes(shapes: Mapping[str, tuple[int, ...]], family: str) -> CLIPText:
  """The network of a tower in a whole model of Stable Diffusion, whose files have no config.

  By the names of transformers such a file has OpenAI's tower, with quick_gelu; by OpenCLIP's names it has
  one with gelu.  Heads are 64 wide in both.

  Raises:
    UserError: naming a tensor that is missing.
  """
  names = {ours: leaf.theirs[0] for ours, leaf in rename.expand_table(table(CLIPText(depth=1), family))}

  def side(ours: str, axis: int) -> int:
    name = names[ours]
    if len(shapes.get(name, ())) <= axis:
      raise UserError(f"the file lacks {name}, or its axes; expected a text transformer of CLIP")
    return shapes[name][axis]

  numbered = re.compile(re.escape(names["block0/norm1/scale"]).replace("0", r"(\d{1,3})", 1))
  width = side("tokens/embedding", 1)
  projection = names["projection/kernel"]
  if width % HEAD_WIDTH:
    raise UserError(f"{names['tokens/embedding']} is {width} wide; expected a multiple of {HEAD_WIDTH}")
  return CLIPText(
    vocabulary=side("tokens/embedding", 0),
    length=side("places", 0),
    width=width,
    depth=len([name for name in shapes if numbered.fullmatch(name)]),
    heads=width // HEAD_WIDTH,
    hidden=side("block0/mlp/in/kernel", 0),
    activation="quick_gelu" if family == "transformers" else "gelu",
    projection=shapes[projection][0 if family == "transformers" else 1] if projection in shapes else 0,
    end_token=0,
  )
