"""Outputs of transformers' T5EncoderModel with random parameters: python tests/parity/t5.py

Needs torch and transformers; writes t5.npz beside it, which the tests read without either.  Names, shapes
and parameters are as in clip.py.
"""

import json
from pathlib import Path

from clip import saved
from drawn import parameters
import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
SMALL = {"vocab_size": 90, "d_model": 32, "d_ff": 40, "num_layers": 2, "num_heads": 4, "d_kv": 8}
NETWORKS = {
  "relu": SMALL | {"feed_forward_proj": "relu"},
  "gated": SMALL | {"feed_forward_proj": "gated-gelu", "d_kv": 12, "num_heads": 3},
}
LARGE = {
  "t5-small": {},
  "t5-v1.1-xxl": {
    "d_model": 4096,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
  },
}


def main() -> None:
  rng = np.random.RandomState(3)
  ids = rng.randint(0, 90, (2, 150))  # longer than the distance of the last bucket
  mask = np.arange(150) < np.array([[150], [37]])
  kept, told = {"ids": ids, "mask": mask}, {}
  for seed, (name, config) in enumerate(NETWORKS.items()):
    model = transformers.T5EncoderModel(transformers.T5Config(**config))
    stored, shapes = saved(model)
    arrays = parameters(shapes, seed)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()}, strict=False)
    model.eval()
    with torch.no_grad():
      whole = model(torch.from_numpy(ids)).last_hidden_state
      masked = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long()).last_hidden_state
    # what padding itself gives is nobody's input
    kept |= {f"{name}/whole": whole.numpy(), f"{name}/masked": masked.numpy() * mask[..., None]}
    told[name] = {"config": stored, "shapes": shapes, "seed": seed}
    print(name, sum(value.numel() for value in model.parameters()), "parameters", sorted(shapes)[:4])
  for name, config in LARGE.items():
    with torch.device("meta"):
      model = transformers.T5EncoderModel(transformers.T5Config(**config))
    shapes = {key: list(value.shape) for key, value in model.named_parameters()}
    told[name] = {"config": config, "shapes": shapes}
    print(name, sum(value.numel() for value in model.parameters()), "parameters", len(shapes), "tensors")
  np.savez_compressed(HERE / "t5.npz", told=json.dumps(told), **kept)


if __name__ == "__main__":
  main()
