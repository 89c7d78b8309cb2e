"""The torch side of `benchmarks.speed`, which starts it in an environment that has torch and diffusers.

It makes the networks of diffusers with random parameters, writes them to a folder, and answers lines of
JSON: {"call": "forward", "train" or "sample", "variant": one of VARIANTS} -> {"seconds": s}.
"""

import json
from pathlib import Path
import sys
import time

from diffusers import AutoencoderKL, DDIMScheduler, DiTTransformer2DModel, UNet2DConditionModel
import numpy as np
import torch

VARIANTS = ("eager", "channels_last", "compiled")
STEPS = 50


def transformer(side: int) -> torch.nn.Module:
  """DiT; every block of diffusers' class has a copy of the embedder that blocks share in DiT."""
  return DiTTransformer2DModel(
    num_attention_heads=6, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=6,
    sample_size=side, patch_size=2, num_embeds_ada_norm=10, norm_type="ada_norm_zero", norm_elementwise_affine=False,
  )  # fmt: skip


def unet() -> torch.nn.Module:
  return UNet2DConditionModel(
    sample_size=16, block_out_channels=(64, 128, 192), layers_per_block=2, attention_head_dim=4, cross_attention_dim=64,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), norm_num_groups=32,
  )  # fmt: skip


def autoencoder() -> torch.nn.Module:
  return AutoencoderKL(
    block_out_channels=(64, 128, 128), layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 3,
    up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, sample_size=64, norm_num_groups=32,
  )  # fmt: skip


def call_transformer(model, x, level, other):
  return model(x, timestep=level, class_labels=other).sample


def call_unet(model, x, level, other):
  return model(x, level, encoder_hidden_states=other).sample


def call_autoencoder(model, x, level, other):
  return model.decode(model.encode(x).latent_dist.mean).sample


ROWS = {
  "dit64": (lambda: transformer(16), call_transformer),
  "dit256": (lambda: transformer(32), call_transformer),
  "unet": (unet, call_unet),
  "kl": (autoencoder, call_autoencoder),
  "encoder": (autoencoder, lambda model, x, level, other: model.encode(x).latent_dist.mean),
  "decoder": (autoencoder, lambda model, x, level, other: model.decode(x).sample),
}


def randomize(model: torch.nn.Module) -> None:
  """No parameter stays zero, so that every layer counts in the outputs that are compared."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
  if isinstance(model, DiTTransformer2DModel):
    first, *others = model.transformer_blocks
    for block in others:
      block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())


class Row:
  """One network, its inputs, and its calls in every variant."""

  def __init__(self, name: str, folder: Path, dtype: str):
    make, self.apply = ROWS[name]
    torch.manual_seed(0)
    self.model = make().eval()  # no label is dropped
    randomize(self.model)
    self.model.save_pretrained(folder)
    self.half = dtype == "bfloat16"
    self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-4, weight_decay=0.01, fused=True)
    self.average = [parameter.detach().clone() for parameter in self.model.parameters()]
    self.compiled = torch.compile(self.forward)

  def read(self, file: str) -> None:
    arrays = {name: torch.from_numpy(array) for name, array in np.load(file).items()}
    images = lambda x: x.permute(0, 3, 1, 2).contiguous()  # [B, C, H, W]
    self.x, self.target = images(arrays["x"]), images(arrays["target"])
    self.level, self.other = arrays["level"], arrays["other"]

  def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, self.half):
      return self.apply(self.model, x, level, self.other)

  def sample(self, forward, x: torch.Tensor) -> torch.Tensor:
    """Fifty steps of DDIM from the noise x [B, C, H, W]."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(STEPS)
    for t in scheduler.timesteps:
      eps = forward(x, t.expand(len(x))).float()[:, : x.shape[1]]
      x = scheduler.step(eps, t, x).prev_sample
    return x

  def run(self, call: str, variant: str) -> None:
    layout = torch.channels_last if variant == "channels_last" else torch.contiguous_format
    forward = self.compiled if variant == "compiled" else self.forward
    self.model.to(memory_format=layout)
    x = self.x.to(memory_format=layout)
    if call != "train":
      with torch.inference_mode():
        self.sample(forward, x) if call == "sample" else forward(x, self.level)
      return
    torch.nn.functional.mse_loss(forward(x, self.level).float(), self.target).backward()
    torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0, foreach=True)
    self.optimizer.step()
    self.optimizer.zero_grad()
    torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.model.parameters()], 0.001)


def main(name: str, folder: str, dtype: str, threads: str) -> None:
  torch.set_num_threads(int(threads))
  row = Row(name, Path(folder), dtype)
  print(json.dumps({"parameters": sum(p.numel() for p in row.model.parameters())}), flush=True)
  for line in sys.stdin:
    request = json.loads(line)
    if "read" in request:
      row.read(request["read"])
      results = {
        "output": lambda: row.forward(row.x, row.level),
        "samples": lambda: row.sample(row.forward, row.x),
      }
      for name, file in request["write"].items():
        with torch.inference_mode():
          np.save(file, results[name]().float().permute(0, 2, 3, 1).numpy())  # [B, H, W, C]
      print(json.dumps({}), flush=True)
      continue
    start = time.perf_counter()
    row.run(request["call"], request["variant"])
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
