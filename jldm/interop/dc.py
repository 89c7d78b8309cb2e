"""Converts diffusers' AutoencoderDC (deep compression) to DCAutoencoder and back: configuration and
parameters.
"""

from collections.abc import Mapping
from typing import Any

from jldm.core.errors import UserError, printable
from jldm.interop.config import config_choice, config_flag, config_number, config_numbers, config_per_level
from jldm.interop.rename import CONV, DENSE, NORM, POINTWISE, Axes
from jldm.models.autoencoders.dc import ACTIVATIONS, Convolutions, DCAutoencoder, Level, LinearAttention

SCALING = 1.0  # of a config that does not say
MOST_BLOCKS, MOST_SIDE, MOST_SCALES = 64, 15, 4
WIDTHS, SCALES = (128, 256, 512, 512, 1024, 1024), ((), (), (), (5,), (5,), (5,))
BLOCKS = {"encoder": (2, 2, 2, 3, 3, 3), "decoder": (3, 3, 3, 3, 3, 3)}
CONVOLUTIONS, ATTENTION = "ResBlock", "EfficientViTBlock"
NORMS = {"rms_norm": "rms", "batch_norm": "batch"}
STRIDED = {"pixel_unshuffle": False, "conv": True}
NEAREST = {"pixel_shuffle": False, "interpolate": True}
BATCH_NORM = (*NORM, ("mean", "running_mean", Axes("c", "c")), ("variance", "running_var", Axes("c", "c")))
BLOCK = (  # of both kinds: what one has, the other lacks
  ("conv1", "conv1", CONV),
  ("conv2", "conv2", CONV),
  ("norm", "norm", BATCH_NORM),
  ("qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), DENSE),
  *(
    (f"scale{i}_{end}", f"attn.to_qkv_multiscale.{i}.proj_{end}", CONV)
    for i in range(MOST_SCALES)
    for end in ("in", "out")
  ),
  ("attention_out", "attn.to_out", DENSE),
  ("attention_norm", "attn.norm_out", NORM),
  ("gate_in", "conv_out.conv_inverted", POINTWISE),
  ("gate_depth", "conv_out.conv_depth", CONV),
  ("gate_out", "conv_out.conv_point", POINTWISE),
  ("gate_norm", "conv_out.norm", NORM),
)
RESAMPLE = (("conv", "conv", CONV), ("nearest/conv", "conv", CONV))


def network(config: Mapping[str, Any]) -> DCAutoencoder:
  """The network of a config.json.

  Raises:
    UserError: a value of another type, or one that DCAutoencoder does not have.
  """
  encoder, decoder = levels(config, "encoder"), levels(config, "decoder")
  if len(encoder) != len(decoder):
    raise UserError(
      f"config.json has {len(encoder)} levels of the encoder and {len(decoder)} of the decoder; expected "
      f"as many"
    )
  return DCAutoencoder(
    channels=config_number(config, "in_channels", 3),
    latent_channels=config_number(config, "latent_channels", 32),
    encoder_levels=encoder,
    decoder_levels=decoder,
    strided=STRIDED[config_choice(config, "downsample_block_type", "pixel_unshuffle", STRIDED)],
    nearest=NEAREST[config_choice(config, "upsample_block_type", "pixel_shuffle", NEAREST)],
    out_shortcut=config_flag(config, "encoder_out_shortcut"),
    in_shortcut=config_flag(config, "decoder_in_shortcut"),
    activation=config_choice(config, "decoder_conv_act_fn", "relu", ACTIVATIONS),
  )


def levels(config: Mapping[str, Any], side: str) -> tuple[Level, ...]:
  """Of the encoder or the decoder, finest first; UserError as `network`."""
  widths = config_numbers(config, f"{side}_block_out_channels", WIDTHS)
  of_each = lambda name, default: config_per_level(config, f"{side}_{name}", default, len(widths))
  chosen = lambda name, value, legal: config_choice({f"{side}_{name}": value}, f"{side}_{name}", None, legal)
  head = config_number(config, "attention_head_dim", 32)
  blocks = config_numbers({"blocks": of_each("layers_per_block", BLOCKS[side])}, "blocks", (), MOST_BLOCKS, 0)
  if not all(blocks[1:]):
    raise UserError(
      f"config.json has {side}_layers_per_block={blocks}; only the first, of the finest level, may be 0"
    )
  rows = zip(
    widths,
    blocks,
    of_each("block_types", CONVOLUTIONS),
    of_each("qkv_multiscales", SCALES),
    of_each("norm_types", "rms_norm"),
    of_each("act_fns", "silu"),
  )
  parsed = []
  for width, count, kind, scales, norm, activation in rows:
    convolutions = chosen("block_types", kind, (CONVOLUTIONS, ATTENTION)) == CONVOLUTIONS
    norm = NORMS[chosen("norm_types", norm, NORMS if convolutions else ("rms_norm",))]
    plain = Convolutions(norm, chosen("act_fns", activation, ACTIVATIONS))
    parsed.append(Level(width, count, plain if convolutions else LinearAttention(head, odd(scales, side))))
  return tuple(parsed)


def odd(scales: Any, side: str) -> tuple[int, ...]:
  """The sides of further convolutions."""
  name, legal = f"{side}_qkv_multiscales", range(1, MOST_SIDE + 1, 2)
  if not isinstance(scales, (list, tuple)) or len(scales) > MOST_SCALES:
    raise UserError(
      f"config.json has {name} with {printable(str(scales)[:40])}; "
      f"expected up to {MOST_SCALES} odd numbers a level"
    )
  return tuple(config_choice({name: scale}, name, None, legal) for scale in scales)


def block_fields(block: Convolutions | LinearAttention) -> tuple[str, str, list[int]]:
  """The norm, the activation and the scales of a block, as a config.json has them."""
  if isinstance(block, LinearAttention):
    return "rms", "silu", list(block.scales)
  return block.norm, block.activation, []


def config(network: DCAutoencoder) -> dict[str, Any]:
  """The config.json of a network, without how its latents are scaled; the inverse of `network`.

  Raises:
    UserError: heads of several widths, or other blocks of the encoder, which diffusers does not have.
  """
  both = {"encoder": network.encoder_levels, "decoder": network.decoder_levels}
  attending = [
    level.block for some in both.values() for level in some if isinstance(level.block, LinearAttention)
  ]
  heads = sorted({block.width for block in attending}) or [32]
  if len(heads) > 1:
    raise UserError(f"the autoencoder has heads of widths {heads}, and diffusers has one; keep it in jldm")
  if other := [
    level.block for level in network.encoder_levels if level.block not in (Convolutions(), *attending)
  ]:
    raise UserError(
      f"the autoencoder has {other[0]} in its encoder, where diffusers has {Convolutions()}; keep it in jldm"
    )
  norms = {ours: theirs for theirs, ours in NORMS.items()}
  decoder = [block_fields(level.block) for level in network.decoder_levels]
  fields = {
    "decoder_norm_types": [norms[norm] for norm, _, _ in decoder],
    "decoder_act_fns": [activation for _, activation, _ in decoder],
  }
  for side, some in both.items():
    fields |= {
      f"{side}_block_out_channels": [level.width for level in some],
      f"{side}_block_types": [
        ATTENTION if isinstance(level.block, LinearAttention) else CONVOLUTIONS for level in some
      ],
      f"{side}_layers_per_block": [level.blocks for level in some],
      f"{side}_qkv_multiscales": [block_fields(level.block)[2] for level in some],
    }
  return {
    "_class_name": "AutoencoderDC",
    "_diffusers_version": "0.42.0",
    "attention_head_dim": heads[0],
    "decoder_conv_act_fn": network.activation,
    "decoder_in_shortcut": network.in_shortcut,
    "downsample_block_type": "conv" if network.strided else "pixel_unshuffle",
    "encoder_out_shortcut": network.out_shortcut,
    "in_channels": network.channels,
    "latent_channels": network.latent_channels,
    "upsample_block_type": "interpolate" if network.nearest else "pixel_shuffle",
  } | fields


def table(network: DCAutoencoder) -> tuple:
  """Whose parameters are whose: resampling comes after the blocks of a level of the encoder, before
  those of the decoder.
  """
  encoder, decoder = [], []
  for number, level in enumerate(network.encoder_levels):
    encoder += [(f"level{number}_block{i}", f"down_blocks.{number}.{i}", BLOCK) for i in range(level.blocks)]
    encoder.append((f"down{number + 1}", f"down_blocks.{number}.{level.blocks}", RESAMPLE))
  for number, level in enumerate(network.decoder_levels):
    first = number + 1 < len(network.decoder_levels)
    decoder += [
      (f"level{number}_block{i}", f"up_blocks.{number}.{i + first}", BLOCK) for i in range(level.blocks)
    ]
    decoder.append((f"up{number + 1}", f"up_blocks.{number}.0", RESAMPLE))
  ends = tuple((end, f"conv_{end}", (*CONV, *RESAMPLE)) for end in ("in", "out"))
  return (
    ("encoder", "encoder", (*ends, *encoder)),
    ("decoder", "decoder", (*ends, ("norm", "norm_out", NORM), *decoder)),
  )
