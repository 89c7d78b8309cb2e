"""Converts the encoders of T5 to ours and back, by the names of transformers."""

from collections.abc import Mapping
from typing import Any

from jldm.core.errors import UserError
from jldm.interop import rename
from jldm.interop.config import config_choice, config_number, config_real, refused
from jldm.interop.rename import DENSE, Axes
from jldm.models.towers.t5 import T5Encoder

MOST_LAYERS, MOST_IDS, MOST_WIDTH = 256, 2**20, 2**17
KINDS = {  # feed_forward_proj -> (gated, activation)
  "relu": (False, "relu"),
  "gated-gelu": (True, "gelu_tanh"),
}
SCALE = (("scale", "weight", Axes("c", "c")),)
BLOCK = (
  ("norm1", "layer.0.layer_norm", SCALE),
  (
    "attention",
    "layer.0.SelfAttention",
    (("q", "q", DENSE), ("k", "k", DENSE), ("v", "v", DENSE), ("out", "o", DENSE)),
  ),
  ("norm2", "layer.1.layer_norm", SCALE),
)
MLP = {  # by whether it is gated
  False: (("in", "wi", DENSE), ("out", "wo", DENSE)),
  True: (("gate", "wi_0", DENSE), ("in", "wi_1", DENSE), ("out", "wo", DENSE)),
}
RELATIVE = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
OTHERS = r"decoder\..*|lm_head\.weight|encoder\.embed_tokens\.weight"  # tensors that are no encoder's


def table(network: T5Encoder) -> tuple:
  """Where the arrays of a network are in files of transformers."""
  rows = (
    ("tokens/embedding", "shared.weight", Axes("vd", "vd")),
    ("relative", RELATIVE, Axes("kn", "kn")),
    ("block{i}", "encoder.block.{i}", BLOCK),
    ("block{i}/mlp", "encoder.block.{i}.layer.1.DenseReluDense", MLP[network.gated]),
    ("norm", "encoder.final_layer_norm", SCALE),
  )
  return rename.number_table(rows, [{"i": i} for i in range(network.depth)])


def saved_name(name: str) -> str:
  """The name of a tensor in a file of transformers."""
  return name


def network(config: Mapping[str, Any]) -> T5Encoder:
  """The network of a config.json of transformers.

  Raises:
    UserError: a value that is none, or that our network does not have.
  """
  gated, activation = KINDS[config_choice(config, "feed_forward_proj", "relu", KINDS)]
  buckets = config_number(config, "relative_attention_num_buckets", 32, 2**10, 4)
  max_distance = config_number(config, "relative_attention_max_distance", 128, 2**20)
  if buckets % 4 or max_distance <= buckets // 4:
    raise refused("relative_attention_num_buckets", buckets, f"a multiple of 4, below 4 times {max_distance}")
  return T5Encoder(
    vocabulary=config_number(config, "vocab_size", 32128, MOST_IDS),
    width=config_number(config, "d_model", 512),
    depth=config_number(config, "num_layers", 6, MOST_LAYERS),
    heads=config_number(config, "num_heads", 8),
    head_width=config_number(config, "d_kv", 64),
    hidden=config_number(config, "d_ff", 2048, MOST_WIDTH),
    gated=gated,
    activation=activation,
    buckets=buckets,
    max_distance=max_distance,
    epsilon=config_real(config, "layer_norm_epsilon", 1e-6, 1.0),
  )


def config(network: T5Encoder) -> dict[str, Any]:
  """The config.json of transformers of a network; the inverse of `network`.

  Raises:
    UserError: a gate and an activation that are not read.
  """
  kind = (network.gated, network.activation)
  if kind not in KINDS.values():
    legal = " or ".join(f"gated={gated} with {name!r}" for gated, name in KINDS.values())
    raise UserError(f"gated={network.gated}, activation={network.activation!r}; T5 has {legal}")
  return {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": network.vocabulary,
    "d_model": network.width,
    "num_layers": network.depth,
    "num_heads": network.heads,
    "d_kv": network.head_width,
    "d_ff": network.hidden,
    "feed_forward_proj": next(name for name, each in KINDS.items() if each == kind),
    "relative_attention_num_buckets": network.buckets,
    "relative_attention_max_distance": network.max_distance,
    "layer_norm_epsilon": network.epsilon,
    "is_encoder_decoder": False,
  }
