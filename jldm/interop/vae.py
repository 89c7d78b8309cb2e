"""Converts Stable Diffusion's autoencoders to ours and back: AutoencoderKL and VQModel of diffusers, and
CompVis.

The tables below say which array is which; `rename` explains their form.  A config.json describes the
network.  A CompVis file has no config: the shapes of its tensors give the network.
"""

from collections.abc import Iterable, Mapping
import re
from typing import Any, NamedTuple

from jldm.core.errors import UserError, printable
from jldm.interop import rename
from jldm.interop.config import MOST_LEVELS, config_flag, config_number, config_numbers, config_value
from jldm.interop.rename import CONV, DENSE, NORM, POINTWISE, Axes
from jldm.models.autoencoders.kl import KLAutoencoder
from jldm.models.autoencoders.quantize import Codebook
from jldm.models.autoencoders.vq import VQAutoencoder

SCALING = 0.18215  # of a config that does not say
COMPVIS_GROUPS = 32
FIRST_STAGE = "first_stage_model."  # before an autoencoder's names in a whole model's file
MOST_RESNETS, MOST_CODES = 16, 2**20


class Layers(NamedTuple):
  """How arrays lie in the layers of a family of files."""

  conv: tuple = CONV
  norm: tuple = NORM
  attention: tuple = DENSE


def resnet(layers: Layers, shortcut: str) -> tuple:
  pairs = (("norm1", layers.norm), ("conv1", layers.conv), ("norm2", layers.norm), ("conv2", layers.conv))
  return (*((name, name, below) for name, below in pairs), ("shortcut", shortcut, layers.conv))


def attention(layers: Layers, norm: str, qkv: tuple[str, str, str], out: str) -> tuple:
  inner = (("qkv", qkv, layers.attention), ("out", out, layers.attention))
  return (("norm", norm, layers.norm), ("attention", "", inner))


def diffusers_rows(layers: Layers, qkv: tuple[str, str, str], out: str) -> tuple:
  """{level} counts from the finest, {up} from the coarsest."""
  block, attend, conv = (
    resnet(layers, "conv_shortcut"),
    attention(layers, "group_norm", qkv, out),
    layers.conv,
  )
  return (
    ("encoder/level{level}_resnet{i}", "encoder.down_blocks.{level}.resnets.{i}", block),
    ("encoder/level{level}_attention{i}", "encoder.down_blocks.{level}.attentions.{i}", attend),
    ("encoder/down{level}/conv", "encoder.down_blocks.{finer}.downsamplers.0.conv", conv),
    ("decoder/level{level}_resnet{i}", "decoder.up_blocks.{up}.resnets.{i}", block),
    ("decoder/level{level}_attention{i}", "decoder.up_blocks.{up}.attentions.{i}", attend),
    ("decoder/up{level}/conv", "decoder.up_blocks.{up}.upsamplers.0.conv", conv),
    ("{side}/in", "{side}.conv_in", conv),
    ("{side}/middle/resnet1", "{side}.mid_block.resnets.0", block),
    ("{side}/middle/attention", "{side}.mid_block.attentions.0", attend),
    ("{side}/middle/resnet2", "{side}.mid_block.resnets.1", block),
    ("{side}/norm", "{side}.conv_norm_out", layers.norm),
    ("{side}/out", "{side}.conv_out", conv),
    *bottleneck_rows(conv),
  )


def compvis_rows() -> tuple:
  layers = Layers(attention=POINTWISE)
  block, attend = resnet(layers, "nin_shortcut"), attention(layers, "norm", ("q", "k", "v"), "proj_out")
  return (
    ("encoder/level{level}_resnet{i}", "encoder.down.{level}.block.{i}", block),
    ("encoder/level{level}_attention{i}", "encoder.down.{level}.attn.{i}", attend),
    ("encoder/down{level}/conv", "encoder.down.{finer}.downsample.conv", CONV),
    ("decoder/level{level}_resnet{i}", "decoder.up.{level}.block.{i}", block),
    ("decoder/level{level}_attention{i}", "decoder.up.{level}.attn.{i}", attend),
    ("decoder/up{level}/conv", "decoder.up.{level}.upsample.conv", CONV),
    ("{side}/in", "{side}.conv_in", CONV),
    ("{side}/middle/resnet1", "{side}.mid.block_1", block),
    ("{side}/middle/attention", "{side}.mid.attn_1", attend),
    ("{side}/middle/resnet2", "{side}.mid.block_2", block),
    ("{side}/norm", "{side}.norm_out", NORM),
    ("{side}/out", "{side}.conv_out", CONV),
    *bottleneck_rows(CONV),
  )


def bottleneck_rows(conv: tuple) -> tuple:
  """Of both networks: what one has, the other lacks."""
  return (
    ("moments", "quant_conv", conv),
    ("latents", "post_quant_conv", conv),
    ("before", "quant_conv", conv),
    ("after", "post_quant_conv", conv),
    ("codebook/vectors", "quantize.embedding.weight", Axes("kd", "kd")),
  )


LINEN = Layers(
  *(
    tuple((name, name, Axes(axes, axes)) for name, axes in pairs)
    for pairs in (
      (("kernel", "hwio"), ("bias", "o")),
      (("scale", "c"), ("bias", "c")),
      (("kernel", "io"), ("bias", "o")),
    )
  )
)
OLD_QKV, OLD_OUT = ("query", "key", "value"), "proj_attn"
ROWS = {  # by family of files
  "diffusers": diffusers_rows(Layers(), ("to_q", "to_k", "to_v"), "to_out.0"),
  "old diffusers": diffusers_rows(Layers(), OLD_QKV, OLD_OUT),  # before July 2023
  "old flax": diffusers_rows(
    LINEN, OLD_QKV, OLD_OUT
  ),  # FlaxAutoencoderKL, its down_blocks_0 written down_blocks.0
  "CompVis": compvis_rows(),
}


def table(network: Any, family: str = "diffusers") -> tuple:
  """Where the arrays of a network are in files of a family."""
  levels = len(network.widths)
  numbers = [
    {"level": level, "finer": level - 1, "up": levels - 1 - level, "i": i, "side": side}
    for level in range(levels)
    for i in range(network.resnets + 1)
    for side in ("encoder", "decoder")
  ]
  return rename.number_table(ROWS[family], numbers)


def family(names: Iterable[str]) -> str:
  """Which of ROWS the names of a folder belong to."""
  names = list(names)
  if is_compvis(names):
    return "CompVis"
  if any(name.endswith(".kernel") for name in names):
    return "old flax"
  return "old diffusers" if any(name.endswith(f".{OLD_OUT}.weight") for name in names) else "diffusers"


def is_compvis(names: Iterable[str]) -> bool:
  """Whether names include those of a CompVis autoencoder."""
  return any(re.match(rf"({re.escape(FIRST_STAGE)})?encoder\.down\.\d", name) for name in names)


def network(config: Mapping[str, Any]) -> Any:
  """The network of a config.json of AutoencoderKL or VQModel.

  Raises:
    UserError: a value that is none, or that asks for what our networks do not have.
  """
  quantised = config.get("_class_name") == "VQModel"
  widths = config_numbers(config, "block_out_channels", (64,))
  for name, only in {"act_fn": "silu", "norm_type": "group", "lookup_from_codebook": False}.items():
    if config_value(config, name, only) != only:
      raise UserError(f"config.json has {name}={config[name]!r}; expected {only!r}")
  channels = config_number(config, "in_channels", 3)
  if config_number(config, "out_channels", 3) != channels:
    raise UserError(
      f"config.json has in_channels={channels} and another out_channels; expected equal numbers"
    )
  fields = {
    "channels": channels,
    "widths": widths,
    "resnets": config_number(config, "layers_per_block", 1, MOST_RESNETS),
    "groups": config_number(config, "norm_num_groups", 32),
    "attention": attention_levels(config, len(widths)),
    "middle_attention": config_flag(config, "mid_block_add_attention"),
  }
  latent_channels = config_number(config, "latent_channels", 3 if quantised else 4)
  if quantised:
    embedded = config_number(config, "vq_embed_dim", latent_channels)
    codes = Codebook(config_number(config, "num_vq_embeddings", 256, MOST_CODES))
    features = latent_channels if latent_channels != embedded else 0
    return VQAutoencoder(codes, latent_channels=embedded, features=features, **fields)
  pointwise = config_flag(config, "use_quant_conv")
  if config_flag(config, "use_post_quant_conv") != pointwise:
    raise UserError("config.json has one of use_quant_conv and use_post_quant_conv; expected both or neither")
  return KLAutoencoder(latent_channels=latent_channels, pointwise=pointwise, **fields)


def attention_levels(config: Mapping[str, Any], levels: int) -> tuple[int, ...]:
  """Which levels have attention, the finest 0; both sides must agree."""
  attends = {}
  for side, plain, attending in (
    ("down", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    ("up", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
  ):
    types = config_value(config, f"{side}_block_types", (plain,))
    if (
      not isinstance(types, (list, tuple))
      or len(types) != levels
      or any(kind not in (plain, attending) for kind in types)
    ):
      raise UserError(
        f"config.json has {side}_block_types={printable(str(types)[:80])}; "
        f"expected {levels} of {plain} or {attending}"
      )
    from_finest = types if side == "down" else types[::-1]
    attends[side] = tuple(level for level, kind in enumerate(from_finest) if kind == attending)
  if attends["down"] != attends["up"]:
    raise UserError(
      f"config.json has attention at levels {attends['down']} of the encoder and {attends['up']} of the "
      f"decoder; "
      "expected the same levels in both"
    )
  return attends["down"]


def config(network: Any) -> dict[str, Any]:
  """The config.json of a network, without how its latents are scaled; the inverse of `network`.

  Raises:
    UserError: a network that diffusers does not have.
  """
  quantised, levels = isinstance(network, VQAutoencoder), range(len(network.widths))
  if network.patch > 1:
    raise UserError(
      f"the autoencoder folds patch={network.patch} pixels into channels, which diffusers has not; train "
      f"it with 1"
    )
  if quantised and not isinstance(network.quantizer, Codebook):
    raise UserError(
      f"the autoencoder's quantizer is {type(network.quantizer).__name__}, which diffusers has not; use "
      f"Codebook"
    )
  features = network.features or network.latent_channels
  if not quantised and features != network.latent_channels:
    raise UserError(
      f"the autoencoder has features={features} and other latents, which diffusers has not; keep it in jldm"
    )
  kind = lambda name: [("Attn" if level in network.attention else "") + name for level in levels]
  if quantised:
    fields = {"num_vq_embeddings": network.quantizer.size, "vq_embed_dim": network.latent_channels}
  else:
    fields = {"use_quant_conv": network.pointwise, "use_post_quant_conv": network.pointwise}
  return {
    "_class_name": "VQModel" if quantised else "AutoencoderKL",
    "_diffusers_version": "0.42.0",
    "act_fn": "silu",
    "block_out_channels": list(network.widths),
    "down_block_types": kind("DownEncoderBlock2D"),
    "in_channels": network.channels,
    "latent_channels": features,
    "layers_per_block": network.resnets,
    "mid_block_add_attention": network.middle_attention,
    "norm_num_groups": network.groups,
    "out_channels": network.channels,
    "up_block_types": kind("UpDecoderBlock2D")[::-1],
  } | fields


def compvis_network(shapes: Mapping[str, tuple[int, ...]]) -> Any:
  """The network of tensors of CompVis, by names without a prefix.

  Raises:
    UserError: naming a tensor that is missing.
  """

  def side(name: str, axis: int) -> int:
    if len(shapes.get(name, ())) <= axis:
      raise UserError(
        f"the file lacks {name}, or its axes; expected an autoencoder of CompVis's latent-diffusion"
      )
    return shapes[name][axis]

  counted = lambda pattern: len({match[1] for name in shapes if (match := re.match(pattern, name))})
  levels = min(counted(r"encoder\.down\.(\d{1,2})\.block\."), MOST_LEVELS)
  z = side("decoder.conv_in.weight", 1)
  fields = {
    "channels": side("encoder.conv_in.weight", 1),
    "widths": tuple(side(f"encoder.down.{level}.block.0.conv2.weight", 0) for level in range(levels)),
    "resnets": min(counted(r"encoder\.down\.0\.block\.(\d{1,2})\."), MOST_RESNETS),
    "groups": COMPVIS_GROUPS,
    "attention": tuple(level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in shapes),
    "middle_attention": "encoder.mid.attn_1.q.weight" in shapes,
  }
  if "quantize.embedding.weight" in shapes:
    codes, embedded = side("quantize.embedding.weight", 0), side("quantize.embedding.weight", 1)
    return VQAutoencoder(
      Codebook(codes), latent_channels=embedded, features=z if z != embedded else 0, **fields
    )
  pointwise = "quant_conv.weight" in shapes
  embedded = side("post_quant_conv.weight", 1) if pointwise else z
  return KLAutoencoder(
    latent_channels=embedded, features=z if z != embedded else 0, pointwise=pointwise, **fields
  )
