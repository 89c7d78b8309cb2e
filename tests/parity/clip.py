"""Outputs of transformers' CLIPTextModel with random parameters: python tests/parity/clip.py

Needs torch and transformers; writes clip.npz beside it, which the tests read without either.  The names and
shapes that `save_pretrained` wrote are kept, and parameters are drawn anew (`drawn.py`).  Of the published
sizes only names and shapes are kept, from torch's meta device.

OpenCLIP's transformer is not in transformers: `OpenCLIPText` has its layers and names, as Cherti et al. 2022
(2212.07143) published them.
"""

import json
from pathlib import Path
import tempfile

from drawn import parameters
import numpy as np
from safetensors import safe_open
import torch
from torch import nn
import transformers

HERE = Path(__file__).parent
SMALL = {
  "vocab_size": 99,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 3,
  "num_attention_heads": 4,
  "max_position_embeddings": 11,
  "projection_dim": 20,
}
NETWORKS = {  # by name: class, config
  "quick": (transformers.CLIPTextModel, SMALL | {"hidden_act": "quick_gelu", "eos_token_id": 2}),
  "exact": (transformers.CLIPTextModel, SMALL | {"hidden_act": "gelu", "eos_token_id": 55}),
  "projected": (
    transformers.CLIPTextModelWithProjection,
    SMALL | {"hidden_act": "gelu", "eos_token_id": 2, "layer_norm_eps": 1e-3},
  ),
}
LARGE = {  # name: class, config of the published models
  "CLIP-L": (
    transformers.CLIPTextModel,
    {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
  ),
  "OpenCLIP-H": (
    transformers.CLIPTextModel,
    {
      "hidden_size": 1024,
      "intermediate_size": 4096,
      "num_attention_heads": 16,
      "num_hidden_layers": 23,
      "hidden_act": "gelu",
    },
  ),
  "OpenCLIP-bigG": (
    transformers.CLIPTextModelWithProjection,
    {
      "hidden_size": 1280,
      "intermediate_size": 5120,
      "num_attention_heads": 20,
      "num_hidden_layers": 32,
      "hidden_act": "gelu",
      "projection_dim": 1280,
    },
  ),
}
SKIPS = (0, 1, 2)


class OpenCLIPBlock(nn.Module):
  """A block of OpenCLIP's text transformer."""

  def __init__(self, width: int, heads: int):
    super().__init__()
    self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
    self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
    self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

  def forward(self, x, mask):
    h = self.ln_1(x)
    x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
    return x + self.mlp["c_proj"](nn.functional.gelu(self.mlp["c_fc"](self.ln_2(x))))


class OpenCLIPText(nn.Module):
  """OpenCLIP's text transformer: its layers and its names."""

  def __init__(self, vocabulary=99, length=11, width=32, heads=4, depth=3, projection=20):
    super().__init__()
    self.token_embedding = nn.Embedding(vocabulary, width)
    self.positional_embedding = nn.Parameter(torch.zeros(length, width))
    blocks = nn.ModuleList(OpenCLIPBlock(width, heads) for _ in range(depth))
    self.transformer = nn.ModuleDict({"resblocks": blocks})
    self.ln_final = nn.LayerNorm(width)
    self.text_projection = nn.Parameter(torch.zeros(width, projection))

  def forward(self, ids):
    length = ids.shape[1]
    mask = torch.full((length, length), -torch.inf).triu_(1)
    states = [self.token_embedding(ids) + self.positional_embedding[:length]]
    for block in self.transformer["resblocks"]:
      states.append(block(states[-1], mask))
    last = self.ln_final(states[-1])
    pooled = last[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection
    return states, self.ln_final, pooled


def texts(length: int, vocabulary: int) -> np.ndarray:
  """Ids [4, length] in which the greatest id, and 55, stand at different places; in the last, 55 twice."""
  ids = np.random.RandomState(7).randint(3, 54, (4, length))
  for row, (greatest, end) in enumerate(((4, 7), (9, 2), (10, 10), (6, 3))):
    ids[row, end] = 55
    ids[row, greatest] = vocabulary - 1 if greatest != end else 55
  ids[3, 9] = 55
  return ids


def saved(model) -> tuple[dict, dict]:
  """The config.json and the shapes by name that `save_pretrained` writes."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    with safe_open(f"{folder}/model.safetensors", "np") as file:
      shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  it is no mapping
    return json.loads(Path(folder, "config.json").read_text()), shapes


def fill(model, arrays: dict) -> None:
  model.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
  model.eval()


def outputs(name: str, states, norm, pooled) -> dict[str, np.ndarray]:
  kept = {f"{name}/pooled": pooled}
  for skip in SKIPS:
    kept |= {f"{name}/{skip}/plain": states[-1 - skip], f"{name}/{skip}/normed": norm(states[-1 - skip])}
  return {key: value.detach().numpy() for key, value in kept.items()}


def main() -> None:
  ids = texts(11, 99)
  kept, told = {"ids": ids}, {}
  tensor = torch.from_numpy(ids)
  for seed, (name, (kind, config)) in enumerate(NETWORKS.items()):
    model = kind(transformers.CLIPTextConfig(**config))
    stored, shapes = saved(model)
    fill(model, parameters(shapes, seed))
    with torch.no_grad():
      out = model(tensor, output_hidden_states=True)
      inner = model.text_model if kind is transformers.CLIPTextModelWithProjection else model
      pooled = out.text_embeds if kind is transformers.CLIPTextModelWithProjection else out.pooler_output
      kept |= outputs(name, out.hidden_states, inner.final_layer_norm, pooled)
      assert torch.equal(inner.final_layer_norm(out.hidden_states[-1]), out.last_hidden_state) or torch.equal(
        out.hidden_states[-1], out.last_hidden_state
      )
    told[name] = {"config": stored, "shapes": shapes, "seed": seed}
    print(name, sum(value.numel() for value in model.parameters()), "parameters")
  model = OpenCLIPText()
  shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
  fill(model, parameters(shapes, 9))
  with torch.no_grad():
    kept |= outputs("open", *model(tensor))
  text = {"context_length": 11, "vocab_size": 99, "width": 32, "heads": 4, "layers": 3}
  told["open"] = {"config": {"model_cfg": {"embed_dim": 20, "text_cfg": text}}, "shapes": shapes, "seed": 9}
  for name, (kind, config) in LARGE.items():
    with torch.device("meta"):
      model = kind(transformers.CLIPTextConfig(**config))
    shapes = {key: list(value.shape) for key, value in model.named_parameters()}
    told[name] = {"config": config, "shapes": shapes}
    print(name, sum(value.numel() for value in model.parameters()), "parameters", len(shapes), "tensors")
  np.savez_compressed(HERE / "clip.npz", told=json.dumps(told), **kept)


if __name__ == "__main__":
  main()
