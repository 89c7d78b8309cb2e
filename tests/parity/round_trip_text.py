"""Text encoders that jldm wrote, loaded by transformers: no missing and no unexpected key, the same outputs.

  PYTHONPATH=. python tests/parity/round_trip_text.py write FOLDER    where jldm is
  python tests/parity/round_trip_text.py read FOLDER                  where torch and transformers are

The second prints what tests/parity/round_trip_text.txt keeps.
"""

from pathlib import Path
import sys

import numpy as np

NAMES = {  # of towers -> the class of transformers that loads them
  "clip_quick": "CLIPTextModel",
  "clip_exact": "CLIPTextModel",
  "clip_projected": "CLIPTextModelWithProjection",
  "t5_relu": "T5EncoderModel",
  "t5_gated": "T5EncoderModel",
}


def write(folder: Path) -> None:
  import jax

  from jldm.interop.towers import init_shapes, save_tower
  from jldm.models.towers.clip import CLIPText
  from jldm.models.towers.t5 import T5Encoder
  from tests.networks import randomised

  small = {"vocabulary": 60, "width": 16, "depth": 2, "heads": 2, "hidden": 20}
  networks = {
    "clip_quick": CLIPText(**small, length=9, end_token=0),
    "clip_exact": CLIPText(**small, length=9, end_token=50, activation="gelu"),
    "clip_projected": CLIPText(**small, length=9, end_token=0, projection=6),
    "t5_relu": T5Encoder(**small, head_width=8),
    "t5_gated": T5Encoder(**small, head_width=5, gated=True, activation="gelu_tanh"),
  }
  ids = np.random.RandomState(0).randint(3, 60, (3, 9))
  ids[:, 4] = 50
  for name, network in networks.items():
    params = randomised(init_shapes(network))
    save_tower(folder / name, network, params)
    with jax.default_matmul_precision("highest"):
      tokens, pooled = jax.jit(network.apply)({"params": params}, ids)
    given = {} if pooled is None else {"pooled": pooled}
    np.savez(folder / name / "outputs.npz", ids=ids, tokens=tokens, **given)


def read(folder: Path) -> None:
  import torch
  import transformers

  print(f"transformers {transformers.__version__}")
  for name, kind in NAMES.items():
    model, told = getattr(transformers, kind).from_pretrained(folder / name, output_loading_info=True)
    kept = np.load(folder / name / "outputs.npz")
    with torch.no_grad():
      out = model.eval()(torch.from_numpy(kept["ids"]))
    found = {"tokens": out.last_hidden_state}
    if "pooled" in kept:
      found["pooled"] = out.text_embeds if kind.endswith("Projection") else out.pooler_output
    close = {
      key: np.abs(kept[key] - value.numpy()).max() / np.abs(value.numpy()).max()
      for key, value in found.items()
    }
    keys = {key: len(told[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    print(name, kind, keys, {key: f"{value:.1e}" for key, value in close.items()})


if __name__ == "__main__":
  {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
