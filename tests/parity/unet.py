"""Outputs of diffusers' UNet2DConditionModel with random parameters: python tests/parity/unet.py

Needs torch and diffusers; writes unet.npz, which the tests read without either: outputs of narrow networks
of each family, and the names and shapes of the published ones, from networks that hold no memory.
Parameters are drawn anew (`drawn.py`).  That the names of CompVis's files are those of CompVis, diffusers'
own conversion says.
"""

import json
from pathlib import Path
import re
import tempfile

import diffusers
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from drawn import parameters
import numpy as np
from safetensors import safe_open
import torch

HERE = Path(__file__).parent
SMALL = {
  "sample_size": 8,
  "in_channels": 4,
  "out_channels": 4,
  "block_out_channels": (16, 32),
  "layers_per_block": 1,
  "norm_num_groups": 8,
  "cross_attention_dim": 24,
}
SD1 = SMALL | {
  "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
  "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
  "attention_head_dim": 2,
}
XL = {"use_linear_projection": True, "addition_embed_type": "text_time"}
NETWORKS = {
  "sd1": SD1,
  "inpaint": SD1 | {"in_channels": 9, "layers_per_block": 2},
  "sd2": SD1 | {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True},
  "xl": SMALL
  | XL
  | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": [2, 4],
    "transformer_layers_per_block": [1, 2],
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
  },
}
FOUR = {
  "block_out_channels": (320, 640, 1280, 1280),
  "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
  "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
  "sample_size": 64,
}
PUBLISHED = {
  "sd15": FOUR | {"attention_head_dim": 8, "cross_attention_dim": 768},
  "sd21": FOUR
  | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
  "sdxl": XL
  | {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
    "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": [1, 2, 10],
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
  },
}
RESNET = {
  "norm1": "in_layers.0",
  "conv1": "in_layers.2",
  "time_emb_proj": "emb_layers.1",
  "norm2": "out_layers.0",
  "conv2": "out_layers.3",
  "conv_shortcut": "skip_connection",
}
ENDS = {
  "conv_in": "input_blocks.0.0",
  "conv_norm_out": "out.0",
  "conv_out": "out.2",
  "time_embedding.linear_1": "time_embed.0",
  "time_embedding.linear_2": "time_embed.2",
  "add_embedding.linear_1": "label_emb.0.0",
  "add_embedding.linear_2": "label_emb.0.2",
}


def compvis(name: str, layers: int, shapes: dict) -> str:
  """A name of diffusers as CompVis has it, blocks numbered through."""
  for old, new in ENDS.items():
    if name.startswith(f"{old}."):
      return name.replace(old, new)
  name = re.sub(r"resnets\.(\d+)\.(\w+)", lambda match: f"resnets.{match[1]}.{RESNET[match[2]]}", name)
  name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"middle_block.{2 * int(match[1])}", name)
  name = name.replace("mid_block.attentions.0", "middle_block.1")
  number = lambda level, i, every: int(level) * every + int(i)
  for part, place in (("resnets", 0), ("attentions", 1)):
    name = re.sub(
      rf"down_blocks\.(\d)\.{part}\.(\d)",
      lambda match, place=place: f"input_blocks.{1 + number(match[1], match[2], layers + 1)}.{place}",
      name,
    )
    name = re.sub(
      rf"up_blocks\.(\d)\.{part}\.(\d)",
      lambda match, place=place: f"output_blocks.{number(match[1], match[2], layers + 1)}.{place}",
      name,
    )
  name = re.sub(
    r"down_blocks\.(\d)\.downsamplers\.0\.conv",
    lambda match: f"input_blocks.{number(int(match[1]) + 1, 0, layers + 1)}.0.op",
    name,
  )
  attends = lambda level: f"up_blocks.{level}.attentions.0.norm.weight" in shapes
  return re.sub(
    r"up_blocks\.(\d)\.upsamplers\.0",
    lambda match: (
      f"output_blocks.{number(int(match[1]), layers, layers + 1)}.{2 if attends(match[1]) else 1}"
    ),
    name,
  )


def saved(model) -> tuple[dict, dict]:
  """The config.json and the shapes by name that `save_pretrained` writes."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    with safe_open(f"{folder}/diffusion_pytorch_model.safetensors", "np") as file:
      shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  it is no mapping
    return json.loads(Path(folder, "config.json").read_text()), shapes


def inputs(name: str) -> dict[str, np.ndarray]:
  """Three of a size that is not square; XL also has pooled texts and sizes."""
  rng, channels = np.random.RandomState(1), NETWORKS[name].get("in_channels", 4)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  given = {"z": draw(3, 6, 10, channels), "level": np.array([0, 0.25, 0.999], np.float32)}
  given["tokens"] = draw(3, 5, SMALL["cross_attention_dim"])
  if name == "xl":
    given |= {"text": draw(3, 16), "sizes": np.float32(rng.randint(0, 1024, (3, 6)))}
  return given


def check_names(arrays: dict, config: dict, theirs: dict[str, str]) -> None:
  """Raises an AssertionError unless diffusers reads CompVis's names as the same tensors."""
  checkpoint = {
    f"model.diffusion_model.{theirs[name]}": torch.from_numpy(value) for name, value in arrays.items()
  }
  converted = convert_ldm_unet_checkpoint(dict(checkpoint), dict(config))
  assert converted.keys() == arrays.keys(), converted.keys() ^ arrays.keys()
  assert all(torch.equal(value, torch.from_numpy(arrays[name])) for name, value in converted.items())


def main() -> None:
  told, kept = {}, {}
  for seed, (name, config) in enumerate(NETWORKS.items()):
    model = diffusers.UNet2DConditionModel(**config).eval()
    stored, shapes = saved(model)
    arrays = parameters(shapes, seed)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    theirs = {key: compvis(key, config["layers_per_block"], shapes) for key in shapes}
    check_names(arrays, stored, theirs)
    given = inputs(name)
    z = torch.from_numpy(given["z"]).permute(0, 3, 1, 2)
    added = {}
    if name == "xl":
      added = {"text_embeds": torch.from_numpy(given["text"]), "time_ids": torch.from_numpy(given["sizes"])}
    with torch.no_grad():
      value = model(
        z,
        torch.from_numpy(given["level"] * 1000),
        torch.from_numpy(given["tokens"]),
        added_cond_kwargs=added or None,
      ).sample
    kept |= {f"{name}/{key}": each for key, each in given.items()}
    kept[f"{name}/value"] = value.permute(0, 2, 3, 1).numpy()
    told[name] = {"config": stored, "shapes": shapes, "seed": seed, "compvis": theirs}
    print(name, sum(each.size for each in arrays.values()), "parameters,", len(arrays), "tensors")
  for name, config in PUBLISHED.items():
    with torch.device("meta"):
      model = diffusers.UNet2DConditionModel(**config)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    theirs = {key: compvis(key, 2, shapes) for key in shapes}
    told[name] = {"config": json.loads(model.to_json_string()), "shapes": shapes, "compvis": theirs}
    print(name, sum(np.prod(shape) for shape in shapes.values()), "parameters,", len(shapes), "tensors")
  np.savez_compressed(HERE / "unet.npz", told=json.dumps(told), **kept)


if __name__ == "__main__":
  main()
