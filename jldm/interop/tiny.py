"""diffusers' AutoencoderTiny (TAESD) as TinyAutoencoder and back: its configuration, and whose
parameters are whose.

Its latents are the scaled ones of the codec that it was distilled from.  latent_magnitude and
latent_shift of a config tell how to keep latents as bytes; they are not a part of what it computes.
"""

from collections.abc import Mapping
from typing import Any

from jldm.core.errors import UserError
from jldm.interop.config import config_choice, config_number, config_numbers
from jldm.interop.rename import CONV
from jldm.models.autoencoders.tiny import ACTIVATIONS, TinyAutoencoder

SCALING = 1.0  # of a config that does not say
MOST_BLOCKS = 16
BLOCK = tuple((f"conv{i + 1}", f"conv.{2 * i}", CONV) for i in range(3))


def network(config: Mapping[str, Any]) -> TinyAutoencoder:
  """Of a config.json.

  Raises:
    UserError: a value that is none, or that asks for what TinyAutoencoder does not have.
  """
  channels = config_number(config, "in_channels", 3)
  config_choice(config, "out_channels", 3, (channels,))
  config_choice(config, "upsample_fn", "nearest", ("nearest",))
  config_choice(config, "upsampling_scaling_factor", 2, (2,))
  blocks = [
    config_numbers(config, f"num_{side}_blocks", default, MOST_BLOCKS, 0)
    for side, default in (("encoder", (1, 3, 3, 3)), ("decoder", (3, 3, 3, 1)))
  ]
  widths = [
    config_numbers(config, f"{side}_block_out_channels", (64, 64, 64, 64)) for side in ("encoder", "decoder")
  ]
  if len({*widths[0], *widths[1]}) > 1 or len({*map(len, blocks + widths)}) > 1:
    raise UserError(
      f"config.json has blocks={blocks} and block_out_channels={widths} of encoder and decoder; "
      "jldm has one width alone, and as many levels of both"
    )
  return TinyAutoencoder(
    channels=channels,
    latent_channels=config_number(config, "latent_channels", 4),
    width=widths[0][0],
    encoder_blocks=blocks[0],
    decoder_blocks=blocks[1][::-1],
    activation=config_choice(config, "act_fn", "relu", ACTIVATIONS),
  )


def config(network: TinyAutoencoder) -> dict[str, Any]:
  """The config.json of a network, without how its latents are scaled; the inverse of `network`."""
  widths = [network.width] * len(network.encoder_blocks)
  return {
    "_class_name": "AutoencoderTiny",
    "_diffusers_version": "0.42.0",
    "act_fn": network.activation,
    "block_out_channels": widths,
    "decoder_block_out_channels": widths,
    "encoder_block_out_channels": widths,
    "in_channels": network.channels,
    "latent_channels": network.latent_channels,
    "num_decoder_blocks": list(network.decoder_blocks[::-1]),
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
    decoder.append(
      (f"up{level}/conv", f"{used + 1}", CONV) if level else ("out", f"{used}", CONV)
    )  # the doubling is `used`
    used += 2
  return (("encoder", "encoder.layers", tuple(encoder)), ("decoder", "decoder.layers", tuple(decoder)))
