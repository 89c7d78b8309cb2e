"""Outputs and samples of diffusion transformers with random parameters: python tests/parity/dit.py

Needs torch and diffusers; writes dit.npz, which the tests read without either.  The networks of DiT, SiT
and LightningDiT are in no package, so they are written here after the papers, by the names of their
authors' files.  Shapes are kept, and parameters are drawn anew (`drawn.py`).
"""

import json
from pathlib import Path
import tempfile

import diffusers
from drawn import parameters, places
import numpy as np
from safetensors import safe_open
import torch
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent
WIDTH, HEADS, DEPTH, PATCH, CHANNELS, CLASSES, SIDE = 32, 2, 2, 2, 4, 10, 8
STEPS = 5
PLAIN = {"learn_sigma": True}
FAMILIES = {
  "dit": PLAIN,
  "sit": PLAIN,
  "repa": {"projectors": True},
  "lightningdit": {"rms": True, "swiglu": True, "rope": True, "qk_norm": True},
}


def part(**children: nn.Module) -> nn.Module:
  module = nn.Module()
  for name, child in children.items():
    module.add_module(name, child)
  return module


class Transformer(nn.Module):
  """DiT, figure 3 (2212.09748), with adaLN-zero; the options are LightningDiT's (2501.01423)."""

  def __init__(self, learn_sigma=False, projectors=False, rms=False, swiglu=False, rope=False, qk_norm=False):
    super().__init__()
    self.rope, head = rope, WIDTH // HEADS
    hidden = 4 * WIDTH
    mlp = lambda: part(
      **{"w12": nn.Linear(WIDTH, 2 * int(2 / 3 * hidden)), "w3": nn.Linear(int(2 / 3 * hidden), WIDTH)}
      if swiglu
      else {"fc1": nn.Linear(WIDTH, hidden), "fc2": nn.Linear(hidden, WIDTH)}
    )
    norm = lambda: nn.RMSNorm(WIDTH, 1e-6) if rms else nn.LayerNorm(WIDTH, 1e-6, elementwise_affine=False)
    norms = lambda: {f"{x}_norm": nn.RMSNorm(head, 1e-6) if qk_norm else nn.Identity() for x in "qk"}
    attention = lambda: part(qkv=nn.Linear(WIDTH, 3 * WIDTH), proj=nn.Linear(WIDTH, WIDTH), **norms())
    modulation = lambda parts: nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, parts * WIDTH))
    self.x_embedder = part(proj=nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH))
    self.pos_embed = nn.Parameter(torch.from_numpy(places(SIDE // PATCH, WIDTH)), requires_grad=False)
    self.t_embedder = part(mlp=nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH)))
    self.y_embedder = part(embedding_table=nn.Embedding(CLASSES + 1, WIDTH))
    self.blocks = nn.ModuleList(
      part(norm1=norm(), attn=attention(), norm2=norm(), mlp=mlp(), adaLN_modulation=modulation(6))
      for _ in range(DEPTH)
    )
    out = nn.Linear(WIDTH, PATCH**2 * CHANNELS * (2 if learn_sigma else 1))
    self.final_layer = part(norm_final=norm(), linear=out, adaLN_modulation=modulation(2))
    if projectors:
      layers = (nn.Linear(WIDTH, 8), nn.SiLU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 6))
      self.projectors = nn.ModuleList([nn.Sequential(*layers)])

  def turn(self, x):
    """Rotary places of LightningDiT: pairs of neighbours, half of them by the row, half by the column."""
    quarter = x.shape[-1] // 4
    rate = 10_000 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = (torch.arange((SIDE // PATCH) ** 2) // (SIDE // PATCH), torch.arange((SIDE // PATCH) ** 2))
    angle = torch.cat([row[:, None] * rate, (column % (SIDE // PATCH))[:, None] * rate], -1)
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).double().contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2).float()

  def attend(self, attn, x):
    b, tokens, _ = x.shape
    q, k, v = attn.qkv(x).reshape(b, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q), attn.k_norm(k)
    q, k = (self.turn(q), self.turn(k)) if self.rope else (q, k)
    return attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

  def feed(self, mlp, x):
    if hasattr(mlp, "w12"):
      gate, value = mlp.w12(x).chunk(2, -1)
      return mlp.w3(F.silu(gate) * value)
    return mlp.fc2(F.gelu(mlp.fc1(x), approximate="tanh"))

  def forward(self, x, t, y):
    """x [B, C, H, W] at t [B] -> [B, C or 2 C, H, W]."""
    rate = torch.exp(-np.log(10_000) * torch.arange(128) / 128)
    waves = torch.cat([torch.cos(t[:, None] * rate), torch.sin(t[:, None] * rate)], -1)
    c = self.t_embedder.mlp(waves) + self.y_embedder.embedding_table(y)
    modulate = lambda h, shift, scale: h * (1 + scale[:, None]) + shift[:, None]
    h = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
    for block in self.blocks:
      shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c).chunk(6, 1)
      h = h + gate_a[:, None] * self.attend(block.attn, modulate(block.norm1(h), shift_a, scale_a))
      h = h + gate_m[:, None] * self.feed(block.mlp, modulate(block.norm2(h), shift_m, scale_m))
    last, side = self.final_layer, SIDE // PATCH
    h = last.linear(modulate(last.norm_final(h), *last.adaLN_modulation(c).chunk(2, 1)))
    h = h.reshape(len(x), side, side, PATCH, PATCH, -1)
    return torch.einsum("nhwpqc->nchpwq", h).reshape(len(x), -1, SIDE, SIDE)


def sampled(family: str, model, z, y) -> torch.Tensor:
  """Samples in the family's own words: its time, its sign, its steps."""
  if family == "dit":  # DDIM over the chain of betas, section 3.1 with Song et al. 2021 (2010.02502), eq. 12
    kept = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))
    times = np.linspace(999, 0, STEPS).round().astype(int)
    for t, s in zip(times, [*times[1:], -1]):
      eps = model(z, torch.full((len(z),), float(t)), y)[:, :CHANNELS]
      a, b = float(kept[t]), float(kept[s]) if s >= 0 else 1.0
      z = b**0.5 * (z - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - b) ** 0.5 * eps
    return z
  for i in range(STEPS):
    t = 1 - i / STEPS if family == "repa" else i / STEPS
    velocity = model(z, torch.full((len(z),), t), y)[:, :CHANNELS]
    z = z + (-1 if family == "repa" else 1) / STEPS * velocity
  return z


def inputs() -> dict[str, np.ndarray]:
  rng = np.random.RandomState(1)
  z = rng.standard_normal((3, SIDE, SIDE, CHANNELS)).astype(np.float32)
  return {"z": z, "label": np.array([3, 0, CLASSES]), "level": np.array([0.04, 0.5, 0.999], np.float32)}


def published() -> tuple[nn.Module, dict, dict]:
  """A DiT of diffusers, its config.json, and the shapes that `save_pretrained` writes."""
  model = diffusers.DiTTransformer2DModel(
    num_attention_heads=HEADS,
    attention_head_dim=WIDTH // HEADS,
    in_channels=CHANNELS,
    out_channels=2 * CHANNELS,
    num_layers=DEPTH,
    sample_size=SIDE,
    patch_size=PATCH,
    num_embeds_ada_norm=CLASSES,
    activation_fn="gelu-approximate",
    norm_type="ada_norm_zero",
    norm_elementwise_affine=False,
  )
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    with safe_open(f"{folder}/diffusion_pytorch_model.safetensors", "np") as file:
      shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  it is no mapping
    return model.eval(), json.loads(Path(folder, "config.json").read_text()), shapes


def main() -> None:
  told, kept, given = {}, {}, inputs()
  z, y = torch.from_numpy(given["z"]).permute(0, 3, 1, 2), torch.from_numpy(given["label"])
  last = lambda value: value.permute(0, 2, 3, 1).numpy()
  for seed, (family, options) in enumerate(FAMILIES.items()):
    model = Transformer(**options).eval()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items() if name != "pos_embed"}
    arrays = {name: torch.from_numpy(value) for name, value in parameters(shapes, seed).items()}
    model.load_state_dict(arrays | {"pos_embed": model.pos_embed.data})
    time = torch.from_numpy(given["level"]) * (1000 if family == "dit" else 1)
    with torch.no_grad():
      kept |= {
        f"{family}/value": last(model(z, time, y)),
        f"{family}/sample": last(sampled(family, model, z, y)),
      }
    told[family] = {"shapes": shapes, "seed": seed}
  model, config, shapes = published()
  arrays = parameters(shapes, 9)
  for name in shapes:  # every block carries a copy of the embedders
    if ".norm1.emb." in name:
      arrays[name] = arrays[f"transformer_blocks.0.norm1.emb.{name.partition('.emb.')[2]}"]
  model.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
  with torch.no_grad():
    time = torch.from_numpy(given["level"]) * 1000
    kept["diffusers/value"] = last(model(z, timestep=time, class_labels=y, return_dict=False)[0])
  told["diffusers"] = {"shapes": shapes, "seed": 9, "config": config}
  np.savez_compressed(HERE / "dit.npz", told=json.dumps(told), **given, **kept)


if __name__ == "__main__":
  main()
