"""Converts Stable Diffusion's U-Nets to ours and back: UNet2DConditionModel of diffusers, and CompVis's and
Stability's single files.

The tables below say which array is which; `rename` explains their form.  A config.json describes the
network.  A single file has none: the shapes of its tensors give the network, but not what it predicts.
"""

from collections.abc import Mapping
import re
from typing import Any, NamedTuple

from jldm.core.errors import UserError, printable
from jldm.interop import rename
from jldm.interop.config import (
  MOST_LEVELS,
  check_number,
  config_choice,
  config_number,
  config_numbers,
  config_per_level,
  config_value,
)
from jldm.interop.rename import CONV, DENSE, NORM, POINTWISE
from jldm.models.denoisers.unet import UNet

CLASS = "UNet2DConditionModel"
PREFIX = "model.diffusion_model."  # before a U-Net's names in a whole model's file
# Of a single file: Stable Diffusion 1 has 8 heads, 2 and XL heads of a width of 64.
GROUPS, HEADS, HEAD_WIDTH = 32, 8, 64
MOST_RESNETS, MOST_BLOCKS, MOST_HEADS = 16, 64, 1024
ONLY = {  # fields of a config.json of which we have one value
  "act_fn": "silu",
  "attention_type": "default",
  "center_input_sample": False,
  "class_embeddings_concat": False,
  "conv_in_kernel": 3,
  "conv_out_kernel": 3,
  "downsample_padding": 1,
  "dual_cross_attention": False,
  "flip_sin_to_cos": True,
  "freq_shift": 0,
  "mid_block_scale_factor": 1,
  "mid_block_type": "UNetMidBlock2DCrossAttn",
  "norm_eps": 1e-5,
  "only_cross_attention": False,
  "resnet_out_scale_factor": 1.0,
  "resnet_skip_time_act": False,
  "resnet_time_scale_shift": "default",
  "time_embedding_type": "positional",
}
ABSENT = (  # fields that must be null
  "class_embed_type",
  "cross_attention_norm",
  "encoder_hid_dim",
  "encoder_hid_dim_type",
  "num_attention_heads",
  "num_class_embeds",
  "reverse_transformer_layers_per_block",
  "time_cond_proj_dim",
  "time_embedding_act_fn",
  "time_embedding_dim",
  "timestep_post_act",
)
DOWN = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
UP = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}
TEXT_TIME = "text_time"


class Shape(NamedTuple):
  """What a network is called with: channels of its input and output, the width of `vector` (0: none), and
  the side of the latents that it was trained on.
  """

  in_channels: int
  out_channels: int
  vector: int
  side: int


def resnet(*names: str) -> tuple:
  ours = ("norm1", "conv1", "embedding", "norm2", "conv2", "shortcut")
  return tuple(zip(ours, names, (NORM, CONV, DENSE, NORM, CONV, CONV)))


def transformer(linear: bool) -> tuple:
  """The layers of a SpatialTransformer, whose ends are 1x1 convolutions in Stable Diffusion 1."""
  attention = (*((part, f"to_{part}", DENSE) for part in "qkv"), ("out", "to_out.0", DENSE))
  block = (
    *((f"norm{i}", f"norm{i}", NORM) for i in (1, 2, 3)),
    ("self_attention", "attn1", attention),
    ("cross_attention", "attn2", attention),
    ("mlp/in", "ff.net.0.proj", DENSE),
    ("mlp/out", "ff.net.2", DENSE),
  )
  end = DENSE if linear else POINTWISE
  return (
    ("norm", "norm", NORM),
    ("in", "proj_in", end),
    ("block", "transformer_blocks.0", block),  # one or several: a network has either
    ("blocks", "transformer_blocks.*", block),
    ("out", "proj_out", end),
  )


def diffusers_rows(linear: bool) -> tuple:
  """{scale} counts from the finest, {up} from the coarsest."""
  attend = transformer(linear)
  block = resnet("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
  return (
    ("in", "conv_in", CONV),
    ("level/in", "time_embedding.linear_1", DENSE),
    ("level/out", "time_embedding.linear_2", DENSE),
    ("vector/in", "add_embedding.linear_1", DENSE),
    ("vector/out", "add_embedding.linear_2", DENSE),
    ("down{scale}_{i}/resnet", "down_blocks.{scale}.resnets.{i}", block),
    ("down{scale}_{i}/attention", "down_blocks.{scale}.attentions.{i}", attend),
    ("down{scale}/conv", "down_blocks.{scale}.downsamplers.0.conv", CONV),
    ("middle/resnet", "mid_block.resnets.0", block),
    ("middle/attention", "mid_block.attentions.0", attend),
    ("middle_resnet", "mid_block.resnets.1", block),
    ("up{scale}_{i}/resnet", "up_blocks.{up}.resnets.{i}", block),
    ("up{scale}_{i}/attention", "up_blocks.{up}.attentions.{i}", attend),
    ("up{scale}/conv", "up_blocks.{up}.upsamplers.0.conv", CONV),
    ("norm", "conv_norm_out", NORM),
    ("out", "conv_out", CONV),
  )


def compvis_rows(linear: bool) -> tuple:
  """Blocks are numbered through: {n_in} and {n_out} of a layer, {n_down} and {n_up} of a change of scale."""
  attend = transformer(linear)
  block = resnet(
    "in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"
  )
  return (
    ("in", "input_blocks.0.0", CONV),
    ("level/in", "time_embed.0", DENSE),
    ("level/out", "time_embed.2", DENSE),
    ("vector/in", "label_emb.0.0", DENSE),
    ("vector/out", "label_emb.0.2", DENSE),
    ("down{scale}_{i}/resnet", "input_blocks.{n_in}.0", block),
    ("down{scale}_{i}/attention", "input_blocks.{n_in}.1", attend),
    ("down{scale}/conv", "input_blocks.{n_down}.0.op", CONV),
    ("middle/resnet", "middle_block.0", block),
    ("middle/attention", "middle_block.1", attend),
    ("middle_resnet", "middle_block.2", block),
    ("up{scale}_{i}/resnet", "output_blocks.{n_out}.0", block),
    ("up{scale}_{i}/attention", "output_blocks.{n_out}.1", attend),
    ("up{scale}/conv", "output_blocks.{n_up}.{after}.conv", CONV),
    ("norm", "out.0", NORM),
    ("out", "out.2", CONV),
  )


ROWS = {"diffusers": diffusers_rows, "CompVis": compvis_rows}


def table(network: UNet, family: str = "diffusers", linear: bool | None = None) -> tuple:
  """Where the arrays of a network are in files of a family.

  linear: the ends of spatial transformers are dense layers, by default as published.  A dense layer is also
    read of a 1x1 convolution.
  """
  coarsest, each = len(network.widths) - 1, network.resnets + 1
  numbers = [
    {
      "scale": scale,
      "up": coarsest - scale,
      "i": i,
      "n_in": 1 + scale * each + i,
      "n_down": (scale + 1) * each,
      "n_out": (coarsest - scale) * each + i,
      "n_up": (coarsest - scale + 1) * each - 1,
      "after": 2 if network.attention[scale] else 1,  # the attention of the block that it stands in
    }
    for scale in range(coarsest + 1)
    for i in range(each)
  ]
  linear = is_linear(network) if linear is None else linear
  return rename.number_table(ROWS[family](linear), numbers)


def is_linear(network: UNet) -> bool:
  """Whether the ends of spatial transformers are published as dense layers: those with heads of a width."""
  return bool(network.head_width)


def network(config: Mapping[str, Any]) -> tuple[UNet, Shape]:
  """The network of a config.json.

  Raises:
    UserError: a value that is none, or that asks for what our network does not have.
  """
  for name, only in ONLY.items():
    if config_value(config, name, only) != only:
      raise refused(name, config[name], repr(only))
  for name in ABSENT:
    if config.get(name) is not None:
      raise refused(name, config[name], "null")
  widths = config_numbers(config, "block_out_channels", (320, 640, 1280, 1280))
  levels = len(widths)
  heads, head_width = heads_of(config, widths)
  blocks = config_per_level(config, "transformer_layers_per_block", 1, levels)
  blocks = tuple(check_number("transformer_layers_per_block", each, MOST_BLOCKS, 1) for each in blocks)
  config_choice(config, "use_linear_projection", False, (False, True))  # the same, in other shapes
  addition = config_choice(config, "addition_embed_type", "none", (TEXT_TIME, "none")) == TEXT_TIME
  made = UNet(
    widths=widths,
    resnets=config_number(config, "layers_per_block", 2, MOST_RESNETS),
    attention=attention_of(config, levels),
    heads=heads,
    head_width=head_width,
    token_width=config_number(config, "cross_attention_dim", 1280),
    groups=config_number(config, "norm_num_groups", 32),
    transformer_layers=blocks if set(blocks) != {1} else (),
    vector_layers=2 if addition else 1,
  )
  channels = config_number(config, "out_channels", 4)
  width = config_number(config, "projection_class_embeddings_input_dim", 0) if addition else 0
  return made, Shape(
    config_number(config, "in_channels", 4, least=channels),
    channels,
    width,
    config_number(config, "sample_size", 64),
  )


def heads_of(config: Mapping[str, Any], widths: tuple[int, ...]) -> tuple[int, int]:
  """(heads, 0) or (8, their width): `attention_head_dim` is, in spite of its name, the number of heads."""
  name = "attention_head_dim"
  each = config_per_level(config, name, 8, len(widths))
  each = tuple(check_number(name, heads, MOST_HEADS, 1) for heads in each)
  if any(width % heads for width, heads in zip(widths, each)):
    raise refused(name, list(each), f"numbers of heads that divide {list(widths)}")
  if len(set(each)) == 1 and len(widths) > 1:
    return each[0], 0
  head_widths = {width // heads for width, heads in zip(widths, each)}
  if len(head_widths) > 1:
    raise refused(name, list(each), f"one number, or heads of one width for {list(widths)}")
  return HEADS, head_widths.pop()


def attention_of(config: Mapping[str, Any], levels: int) -> tuple[bool, ...]:
  """Which scales have attention, the finest first; both ways must agree."""
  published = {"down": (DOWN[True],) * 3 + (DOWN[False],), "up": (UP[False],) + (UP[True],) * 3}
  sides = {}
  for side, kinds in (("down", DOWN), ("up", UP)):
    name = f"{side}_block_types"
    types = config_value(config, name, published[side])
    if (
      not isinstance(types, (list, tuple))
      or len(types) != levels
      or any(kind not in kinds.values() for kind in types)
    ):
      raise refused(name, types, f"{levels} of {' or '.join(kinds.values())}")
    attends = tuple(kind == kinds[True] for kind in types)
    sides[side] = attends if side == "down" else attends[::-1]
  if sides["down"] != sides["up"]:
    raise refused(
      "up_block_types", config.get("up_block_types"), "attention at the scales of down_block_types"
    )
  return sides["down"]


def refused(name: str, value: Any, expected: str) -> UserError:
  return UserError(f"config.json has {name}={printable(str(value)[:80])}; expected {expected}")


def config(network: UNet, shape: Shape, size_features: int = 256) -> dict[str, Any]:
  """The config.json of a network; the inverse of `network`.

  size_features: the sinusoids of each of XL's six sizes.

  Raises:
    UserError: a network that diffusers does not have.
  """
  check_exportable(network, shape)
  heads = [width // network.head_width for width in network.widths] if network.head_width else network.heads
  blocks = list(network.transformer_layers) or 1
  addition = {
    "addition_embed_type": TEXT_TIME,
    "addition_time_embed_dim": size_features,
    "projection_class_embeddings_input_dim": shape.vector,
  }
  return (
    {
      "_class_name": CLASS,
      "_diffusers_version": "0.42.0",
      "attention_head_dim": heads,
      "block_out_channels": list(network.widths),
      "cross_attention_dim": network.token_width,
      "down_block_types": [DOWN[attends] for attends in network.attention],
      "in_channels": shape.in_channels,
      "layers_per_block": network.resnets,
      "norm_num_groups": network.groups,
      "out_channels": shape.out_channels,
      "sample_size": shape.side,
      "transformer_layers_per_block": blocks,
      "up_block_types": [UP[attends] for attends in reversed(network.attention)],
      "use_linear_projection": is_linear(network),
    }
    | {name: value for name, value in ONLY.items()}
    | (addition if shape.vector else {})
  )


def check_exportable(network: UNet, shape: Shape) -> None:
  """Raises a UserError for what diffusers' class does not have, or names otherwise."""
  others = {
    "target_time": network.target_time,
    "guidance_scale": network.guidance_scale,
    "self_conditioning": network.self_conditioning,
    "log_variance": network.log_variance,
    "classes": network.classes,
    "resample_conv": not network.resample_conv,
    "resnets": not network.resnets,
    "token_width": not network.token_width,
    "vector_layers": bool(shape.vector) and network.vector_layers != 2,
  }
  if differing := [name for name, differs in others.items() if differs]:
    name = differing[0]
    raise UserError(
      f"the U-Net has {name}={vars(network)[name]!r}, which diffusers' {CLASS} has not; keep it in jldm"
    )


def compvis_network(shapes: Mapping[str, tuple[int, ...]]) -> tuple[UNet, Shape]:
  """The network of tensors of a single file, by names without PREFIX.

  Raises:
    UserError: naming a tensor that is missing.
  """

  def side(name: str, axis: int) -> int:
    if len(shapes.get(name, ())) <= axis:
      raise UserError(f"the file lacks {PREFIX}{name}, or its axes; expected a U-Net of Stable Diffusion")
    return shapes[name][axis]

  downs = sorted(
    int(match[1])
    for name in shapes
    if (match := re.fullmatch(r"input_blocks\.(\d{1,2})\.0\.op\.weight", name))
  )
  each = downs[0] if downs else 1
  if each < 2 or downs != [each * (i + 1) for i in range(len(downs))] or len(downs) >= MOST_LEVELS:
    raise UserError(
      f"the file has changes of scale at {PREFIX}input_blocks {downs[:MOST_LEVELS]}; "
      "expected a U-Net of Stable Diffusion"
    )
  first = [1 + scale * each for scale in range(len(downs) + 1)]
  attention = tuple(f"input_blocks.{n}.1.norm.weight" in shapes for n in first)

  def blocks(place: str) -> int:
    pattern = re.compile(rf"{re.escape(place)}\.1\.transformer_blocks\.(\d{{1,2}})\.norm1\.weight")
    return max(1, len({match[1] for name in shapes if (match := pattern.fullmatch(name))}))

  layers = [blocks(f"input_blocks.{n}") for n in first[:-1]] + [blocks("middle_block")]
  linear = len(shapes.get("middle_block.1.proj_in.weight", ())) == 2
  vector = side("label_emb.0.0.weight", 1) if "label_emb.0.0.weight" in shapes else 0
  made = UNet(
    widths=tuple(side(f"input_blocks.{n}.0.out_layers.3.weight", 0) for n in first),
    resnets=each - 1,
    attention=attention,
    heads=HEADS,
    head_width=HEAD_WIDTH if linear else 0,
    token_width=side("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
    groups=GROUPS,
    transformer_layers=tuple(layers) if set(layers) != {1} else (),
    vector_layers=2 if vector else 1,
  )
  latent = 128 if vector else 64
  return made, Shape(side("input_blocks.0.0.weight", 1), side("out.2.weight", 0), vector, latent)
