"""Outputs of diffusers' AutoencoderKL and VQModel with random parameters: python tests/parity/vae.py

Needs torch and diffusers; writes vae.npz and the folder vae_sd beside it, which the tests read
without either.  Of the other networks, the names and shapes that `save_pretrained` wrote are kept,
and parameters are drawn anew (`drawn.py`).
"""

import json
from pathlib import Path
import re
import shutil
import tempfile

import diffusers
from drawn import inputs, parameters
import numpy as np
from safetensors import safe_open
import torch

HERE = Path(__file__).parent


def layout(widths: tuple[int, ...], attention: tuple[int, ...] = ()) -> dict:
  kind = lambda plain: [("Attn" if level in attention else "") + plain for level in range(len(widths))]
  return {
    "block_out_channels": widths,
    "down_block_types": kind("DownEncoderBlock2D"),
    "up_block_types": kind("UpDecoderBlock2D")[::-1],
  }


LARGE_MEAN = 100  # added to what the first convolutions give, of standard deviation 1
SMALL = {"norm_num_groups": 4, "layers_per_block": 1}
BARE = {"use_quant_conv": False, "use_post_quant_conv": False}
NETWORKS = {  # by name: class, config; f4, f8, … are CompVis's own, narrow
  "sd": (diffusers.AutoencoderKL, SMALL | layout((8, 8, 16, 16))),
  "sdxl": (
    diffusers.AutoencoderKL,
    SMALL | layout((8, 12, 16)) | {"layers_per_block": 2, "scaling_factor": 0.13025},
  ),
  "sd3": (
    diffusers.AutoencoderKL,
    SMALL
    | layout((8, 16))
    | BARE
    | {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609},
  ),
  "large_mean": (diffusers.AutoencoderKL, SMALL | layout((8, 16), (1,)) | {"mid_block_add_attention": False}),
  "vq": (
    diffusers.VQModel,
    SMALL | layout((8, 16), (1,)) | {"latent_channels": 4, "vq_embed_dim": 3, "num_vq_embeddings": 64},
  ),
}
WIDE = {"norm_num_groups": 32, "layers_per_block": 1}
COMPVIS = {
  "kl_f4": (diffusers.AutoencoderKL, WIDE | layout((32, 64, 64)) | {"latent_channels": 3}),
  "kl_f8": (diffusers.AutoencoderKL, WIDE | layout((32, 64, 64, 64))),
  "kl_f16": (diffusers.AutoencoderKL, WIDE | layout((32, 32, 64, 64, 64), (4,)) | {"latent_channels": 16}),
  "kl_f32": (
    diffusers.AutoencoderKL,
    WIDE | layout((32, 32, 64, 64, 64, 64), (4, 5)) | {"latent_channels": 64},
  ),
  "vq_f4": (diffusers.VQModel, WIDE | layout((32, 64, 64)) | {"latent_channels": 3, "num_vq_embeddings": 96}),
  "vq_f8": (
    diffusers.VQModel,
    WIDE | layout((32, 64, 64, 64), (3,)) | {"latent_channels": 4, "num_vq_embeddings": 96},
  ),
  "vq_f16": (
    diffusers.VQModel,
    WIDE | layout((32, 32, 64, 64, 64), (4,)) | {"latent_channels": 8, "num_vq_embeddings": 96},
  ),
}


def compvis(name: str, levels: int) -> str:
  """A name of diffusers as CompVis has it."""
  name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
  name = re.sub(r"down_blocks\.(\d+)\.attentions", r"down.\1.attn", name)
  name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
  mirrored = lambda part: lambda match: f"up.{levels - 1 - int(match[1])}.{part}"
  name = re.sub(r"up_blocks\.(\d+)\.resnets", mirrored("block"), name)
  name = re.sub(r"up_blocks\.(\d+)\.attentions", mirrored("attn"), name)
  name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", mirrored("upsample"), name)
  for old, new in (
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
  ):
    name = name.replace(old, new)
  return name


def saved(model) -> tuple[dict, dict]:
  """The config.json and the shapes by name that `save_pretrained` writes."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    with safe_open(f"{folder}/diffusion_pytorch_model.safetensors", "np") as file:
      shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  it is no mapping
    return json.loads(Path(folder, "config.json").read_text()), shapes


def fill(model, arrays: dict) -> None:
  model.load_state_dict({name: torch.from_numpy(value).to(model.dtype) for name, value in arrays.items()})
  model.eval()


def outputs(model, factor: int, channels: int) -> dict[str, np.ndarray]:
  """What the two halves make of two sizes."""
  found = {}
  first = lambda value: torch.from_numpy(value).permute(0, 3, 1, 2).to(model.dtype)
  last = lambda value: value.permute(0, 2, 3, 1).float().numpy()
  for size, (images, latents) in inputs(factor, channels).items():
    with torch.no_grad():
      if isinstance(model, diffusers.VQModel):
        found[f"{size}/mean"] = last(model.encode(first(images)).latents)
        found[f"{size}/codes"] = model.quantize(first(latents))[2][2].reshape(latents.shape[:3]).numpy()
      else:
        posterior = model.encode(first(images)).latent_dist
        found |= {f"{size}/mean": last(posterior.mean), f"{size}/log_variance": last(posterior.logvar)}
      found[f"{size}/decoded"] = last(model.decode(first(latents)).sample)
  return found


def main() -> None:
  torch.manual_seed(0)
  kept, told = {}, {}
  for seed, (name, (kind, config)) in enumerate((NETWORKS | COMPVIS).items()):
    model = kind(**config)
    stored, shapes = saved(model)
    levels = len(config["block_out_channels"])
    if name in COMPVIS:
      theirs = {compvis(mine, levels): mine for mine in shapes}
      own = {
        new: [*shapes[old], 1, 1] if re.search(r"\.(q|k|v|proj_out)\.weight", new) else shapes[old]
        for new, old in theirs.items()
      }
      drawn = parameters(own, seed)
      arrays = {old: drawn[new].reshape(shapes[old]) for new, old in theirs.items()}
    else:
      own, arrays = shapes, parameters(shapes, seed)
    if name == "large_mean":
      model = model.double()
      for side in ("encoder", "decoder"):
        arrays[f"{side}.conv_in.bias"] += LARGE_MEAN
    fill(model, arrays)
    if name == "sd":
      shutil.rmtree(HERE / "vae_sd", ignore_errors=True)
      model.save_pretrained(HERE / "vae_sd")
    told[name] = {"config": stored, "shapes": own, "seed": seed}
    channels = config.get("vq_embed_dim") or config.get("latent_channels", 4)
    kept |= {f"{name}/{key}": value for key, value in outputs(model, 2 ** (levels - 1), channels).items()}
    print(name, sum(value.size for value in arrays.values()), "parameters")
  np.savez_compressed(HERE / "vae.npz", told=json.dumps(told), **kept)


if __name__ == "__main__":
  main()
