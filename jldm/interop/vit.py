"""Weights of DINOv2 and of CLIP's pictures by the names of transformers, as ours: blocks stacked,
queries, keys, values as one.

encoder.layer.0.attention.attention.query.weight [C, C], …  ->  blocks/attention/qkv/kernel [depth, C, 3 C]
"""

from collections.abc import Mapping
import re

import numpy as np

from jldm.core.errors import UserError

LAYERS = {  # of theirs that have a weight and perhaps a bias
  "dinov2": {
    "embeddings.patch_embeddings.projection": "patches",
    "norm1": "norm1",
    "attention.attention.query": "attention/q",
    "attention.attention.key": "attention/k",
    "attention.attention.value": "attention/v",
    "attention.output.dense": "attention/out",
    "norm2": "norm2",
    "mlp.fc1": "in",
    "mlp.fc2": "out",
    "layernorm": "norm_last",
  },
  "clip": {
    "vision_model.embeddings.patch_embedding": "patches",
    "vision_model.pre_layrnorm": "norm_first",
    "layer_norm1": "norm1",
    "self_attn.q_proj": "attention/q",
    "self_attn.k_proj": "attention/k",
    "self_attn.v_proj": "attention/v",
    "self_attn.out_proj": "attention/out",
    "layer_norm2": "norm2",
    "mlp.fc1": "in",
    "mlp.fc2": "out",
    "vision_model.post_layernorm": "norm_last",
    "visual_projection": "projection",
  },
}
ARRAYS = {  # of theirs that are no layer's
  "dinov2": {
    "embeddings.cls_token": "token",
    "embeddings.position_embeddings": "places",
    "layer_scale1.lambda1": "scale1",
    "layer_scale2.lambda1": "scale2",
  },
  "clip": {
    "vision_model.embeddings.class_embedding": "token",
    "vision_model.embeddings.position_embedding.weight": "places",
  },
}
BLOCK = {
  "dinov2": re.compile(r"encoder\.layer\.(\d+)\.(.+)"),
  "clip": re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)"),
}
LEFT_OUT = {
  "dinov2": re.compile(r"embeddings\.mask_token"),
  "clip": re.compile(
    r"text_model\..*|text_projection\.weight|logit_scale|vision_model\.embeddings\.position_ids"
  ),
}
AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}  # of vectors, dense layers and convolutions, as ours have them


def rename(kind: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Their names and layouts -> ours; kind is a key of LAYERS.

  Raises:
    UserError: a name or a number of axes that is not theirs, or blocks of which some lack what others have.
  """
  renamed, blocks = {}, {}
  for name in arrays:
    if LEFT_OUT[kind].fullmatch(name):
      continue
    block = BLOCK[kind].fullmatch(name)
    ours, value = rename_one(kind, block[2] if block else name, name, arrays)
    (blocks.setdefault(ours, {}) if block else renamed)[int(block[1]) if block else ours] = value
  depth = max(map(len, blocks.values()), default=0)
  for ours, each in blocks.items():
    if missing := set(range(depth)) - each.keys():
      raise UserError(
        f"block {min(missing)} of {depth} has no {ours}, and others have; "
        "give a file that has all blocks whole"
      )
  stacked = {ours: np.stack([each[i] for i in range(depth)]) for ours, each in blocks.items()}
  for part in ("kernel", "bias"):
    joined = [stacked.pop(f"attention/{x}/{part}", None) for x in "qkv"]
    if all(each is not None for each in joined):
      stacked[f"attention/qkv/{part}"] = np.concatenate(joined, -1)
  return renamed | {f"blocks/{ours}": value for ours, value in stacked.items()}


def rename_one(kind: str, short: str, name: str, arrays: Mapping[str, np.ndarray]) -> tuple[str, np.ndarray]:
  """Our name, without that of the block, and the array in our layout."""
  if ours := ARRAYS[kind].get(short):
    value = arrays[name]
    return ours, value.reshape(-1, value.shape[-1]) if ours == "places" else value.reshape(-1)
  layer, _, part = short.rpartition(".")
  if layer not in LAYERS[kind] or part not in ("weight", "bias"):
    raise UserError(f"{name[:80]!r} is not in {kind} of transformers; expected {next(iter(ARRAYS[kind]))}, …")
  value = arrays[name]
  if value.ndim not in AXES:
    raise UserError(f"{name} is {list(value.shape)}; expected {' or '.join(map(str, AXES))} axes")
  ours = "bias" if part == "bias" else "scale" if value.ndim == 1 else "kernel"
  return f"{LAYERS[kind][layer]}/{ours}", value.transpose(AXES[value.ndim])
