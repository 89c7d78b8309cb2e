"""diffusers' AutoencoderTiny (TAESD) as TinyAutoencoder and back: its configuration, and whose parameters are whose.

Its latents are the scaled ones of the codec that it was distilled from.  latent_magnitude and latent_shift of a config tell how
to keep latents as bytes; they are not a part of what it computes.
"""

from collections.abc import Mapping
from typing import Any

from jldm.core.errors import UserError
from jldm.interop.rename import CONV
from jldm.models.autoencoders.tiny import ACTIVATIONS, TinyAutoencoder

SCALING = 1.0  # of a config that does not say
DEFAULTS = {
  "act_fn": "relu",
  "decoder_block_out_channels": (64, 64, 64, 64),
  "encoder_block_out_channels": (64, 64, 64, 64),
  "in_channels": 3,
  "latent_channels": 4,
  "num_decoder_blocks": (3, 3, 3, 1),
  "num_encoder_blocks": (1, 3, 3, 3),
  "out_channels": 3,
  "upsample_fn": "nearest",
  "upsampling_scaling_factor": 2,
}
BLOCK = tuple((f"conv{i + 1}", f"conv.{2 * i}", CONV) for i in range(3))


def network(config: Mapping[str, Any]) -> TinyAutoencoder:
  """Of a config.json.

  Raises:
    UserError: something that TinyAutoencoder does not do.
  """
  config = DEFAULTS | config
  widths = {*config["encoder_block_out_channels"], *config["decoder_block_out_channels"]}
  legal = {
    "block_out_channels": (sorted(widths), len(widths) == 1, "one width"),
    "act_fn": (config["act_fn"], config["act_fn"] in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    "upsample_fn": (config["upsample_fn"], config["upsample_fn"] == "nearest", "nearest"),
    "upsampling_scaling_factor": (config["upsampling_scaling_factor"], config["upsampling_scaling_factor"] == 2, "2"),
    "out_channels": (config["out_channels"], config["out_channels"] == config["in_channels"], "as many as in_channels"),
    "num_decoder_blocks": (config["num_decoder_blocks"], len(config["num_decoder_blocks"]) == len(config["num_encoder_blocks"]),
                           "as many levels as num_encoder_blocks"),
  }
  for name, (value, good, expected) in legal.items():
    if not good:
      raise UserError(f"AutoencoderTiny with {name}={value}; expected {expected}")
  return TinyAutoencoder(
    channels=config["in_channels"],
    latent_channels=config["latent_channels"],
    width=widths.pop(),
    encoder_blocks=tuple(config["num_encoder_blocks"]),
    decoder_blocks=tuple(reversed(config["num_decoder_blocks"])),
    activation=config["act_fn"],
  )


def config(network: TinyAutoencoder) -> dict[str, Any]:
  """The inverse of `network`."""
  widths = [network.width] * len(network.encoder_blocks)
  return {
    "_class_name": "AutoencoderTiny",
    "act_fn": network.activation,
    "block_out_channels": widths,
    "decoder_block_out_channels": widths,
    "encoder_block_out_channels": widths,
    "in_channels": network.channels,
    "latent_channels": network.latent_channels,
    "num_decoder_blocks": list(reversed(network.decoder_blocks)),
    "num_encoder_blocks": list(network.encoder_blocks),
    "out_channels": network.channels,
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
  }


def table(network: TinyAutoencoder) -> tuple:
  """Whose parameters are whose: theirs are numbered in the order of use."""
  used, encoder = 1, [("in", "0", CONV)]
  for level, blocks in enumerate(network.encoder_blocks):
    if level:
      encoder.append((f"down{level}/conv", f"{used}", CONV))
      used += 1
    encoder += [(f"level{level}_block{i}", f"{used + i}", BLOCK) for i in range(blocks)]
    used += blocks
  encoder.append(("out", f"{used}", CONV))
  used, decoder = 2, [("in", "0", CONV)]  # an activation is 1
  for level, blocks in reversed(list(enumerate(network.decoder_blocks))):
    decoder += [(f"level{level}_block{i}", f"{used + i}", BLOCK) for i in range(blocks)]
    used += blocks
    decoder.append((f"up{level}/conv", f"{used + 1}", CONV) if level else ("out", f"{used}", CONV))  # the doubling is `used`
    used += 2
  return (("encoder", "encoder.layers", tuple(encoder)), ("decoder", "decoder.layers", tuple(decoder)))
